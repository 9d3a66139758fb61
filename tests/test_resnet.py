import pytest
import torch
import torchvision

from protobench.checkpoints import resnet
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_under_its_own_names(name):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = resnet.build(name).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", resnet.ARCHS)
def test_the_shape_is_read_back_from_the_weights(name):
    with torch.device("meta"):
        state = resnet.build(name).state_dict()
    assert resnet.arch_of(state) == resnet.ARCHS[name]
    assert resnet.arch_name(resnet.arch_of(state)) == name


def test_unknown_names_and_networks_are_refused():
    with pytest.raises(UserError, match="resnet51") as error:
        resnet.build("resnet51")
    assert "did you mean 'resnet50'" in str(error.value)
    with pytest.raises(UserError, match="no ResNet"):
        resnet.arch_of({"cls_token": torch.zeros(1)})


@pytest.mark.parametrize("name", ["resnet10-mini", "resnet18", "resnet50", "resnet18-cifar"])
def test_a_folded_network_is_the_same_function(name):
    """Without a BatchNorm, and the network itself left as it was."""
    torch.manual_seed(0)
    backbone = resnet.build(name).double()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.3, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.4, 3.0)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = resnet.fuse_batchnorm(backbone)
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), backbone.eval()(x), rtol=1e-9, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
