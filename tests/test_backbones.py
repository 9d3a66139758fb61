import pytest
import torch
import torchvision

from protobench import backbones
from protobench.errors import UserError


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_under_its_own_names(name):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = backbones.build(name).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", backbones.ARCHS)
def test_the_shape_is_read_back_from_the_weights(name):
    with torch.device("meta"):
        state = backbones.build(name).state_dict()
    assert backbones.arch_of(state) == backbones.ARCHS[name]
    assert backbones.arch_name(backbones.arch_of(state)) == name


def test_unknown_names_and_networks_are_refused():
    with pytest.raises(UserError, match="resnet51") as error:
        backbones.build("resnet51")
    assert "did you mean 'resnet50'" in str(error.value)
    with pytest.raises(UserError, match="no ResNet"):
        backbones.arch_of({"cls_token": torch.zeros(1)})
