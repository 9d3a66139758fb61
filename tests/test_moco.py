import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretrain.moco import MoCo, info_nce, momentum_update
from pretrain.recipes import moco
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


def _unit(*shape, seed=0):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


def test_info_nce_equals_a_naive_loop():
    q, k, queue, temperature = _unit(5, 8), _unit(5, 8, seed=1), _unit(7, 8, seed=2), 0.07
    total = 0.0
    for i in range(5):
        positive = math.exp(float(q[i] @ k[i]) / temperature)
        negatives = sum(math.exp(float(q[i] @ queue[j]) / temperature) for j in range(7))
        total -= math.log(positive / (positive + negatives))
    assert float(info_nce(q, k, queue, temperature)) == pytest.approx(total / 5, abs=1e-12)


def test_info_nce_by_hand():
    q = k = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # similarities 1 | 0, -1 at temperature 1
    expected = -math.log(math.e / (math.e + 1 + 1 / math.e))
    assert float(info_nce(q, k, queue, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_momentum_update_is_the_paper_s():
    key, query = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = {name: value.clone() for name, value in key.state_dict().items()}
    momentum_update(key, query, 0.9)
    for name, value in key.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * query.state_dict()[name])


def _method(**changes):
    torch.manual_seed(0)
    recipe = replace(moco.MINI, queue=24, train=replace(moco.MINI.train, batch_size=8), **changes)
    return MoCo(recipe, seed=0)


def test_the_queue_wraps_around_and_keeps_the_newest():
    method = _method()
    keys = [_unit(8, 64, seed=i).float() for i in range(5)]
    for k in keys:
        method.enqueue(k)
    assert method.pointer == 16  # five batches of 8 in 24 places
    torch.testing.assert_close(method.queue, torch.cat([keys[3], keys[4], keys[2]]))


def test_a_step_trains_the_query_encoder_only():
    method = _method()
    views = [torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)]
    before = method.queue.clone()
    loss = method.loss(views, torch.arange(8))
    loss.backward()
    assert all(p.grad is not None for p in method.encoder_q.parameters())
    assert all(p.grad is None for p in method.encoder_k.parameters())
    assert not torch.equal(method.queue[:8], before[:8])
    torch.testing.assert_close(method.queue[:8].norm(dim=1), torch.ones(8))
    assert torch.equal(method.queue[8:], before[8:])


def test_encoders_start_equal_and_the_head_follows_the_version():
    method = _method()
    for q, k in zip(method.encoder_q.parameters(), method.encoder_k.parameters(), strict=True):
        assert torch.equal(q, k)
    assert isinstance(method.encoder_q.head, torch.nn.Linear)
    v2 = _method(mlp=True)
    assert [type(layer).__name__ for layer in v2.encoder_q.head] == ["Linear", "ReLU", "Linear"]


def test_each_group_has_its_own_statistics_and_keys_are_shuffled_between_them():
    """What 8 GPUs do: chunks of the queries as they come, chunks of the keys in another order,
    everything put back."""
    method, twin = _method(bn_groups=2), _method()
    views = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    q, k = method.embed(views)
    momentum_update(twin.encoder_k, twin.encoder_q, 0.99)
    torch.testing.assert_close(
        q, torch.cat([twin.encoder_q(views[0][:4]), twin.encoder_q(views[0][4:])])
    )
    shuffle = torch.randperm(8, generator=twin.generator("shuffle"))
    assert shuffle.tolist() != sorted(shuffle.tolist())
    for group in (shuffle[:4], shuffle[4:]):
        torch.testing.assert_close(k[group], twin.encoder_k(views[1][group]))
    for name, value in method.state_dict().items():  # running statistics, group after group
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, twin.state_dict()[name], msg=name)
    method.enqueue(k)
    assert method.generator("shuffle").initial_seed() != twin.generator("shuffle").initial_seed(), (
        "another step, another order"
    )


def test_convolutions_see_the_whole_batch_whatever_the_groups():
    """Eight groups, one after another, would be eight times the kernels of a step."""
    method, seen = _method(bn_groups=4), []
    for module in method.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    method.loss([torch.randn(8, 3, 32, 32) for _ in range(2)], torch.arange(8)).backward()
    assert seen == [8] * 2 * sum(
        isinstance(module, torch.nn.Conv2d) for module in method.encoder_q.modules()
    )


def test_the_queue_s_place_is_in_the_checkpoint():
    method, other = _method(), _method()
    method.enqueue(_unit(8, 64).float())
    other.load_state_dict(method.state_dict())
    assert (other.pointer, other.steps) == (8, 1)


def test_a_queue_that_does_not_divide_is_refused():
    recipe = replace(moco.MINI, queue=100)
    with pytest.raises(UserError, match="not a multiple"):
        MoCo(recipe, seed=0)
    with pytest.raises(UserError, match="does not split into 3 groups"):
        _method(bn_groups=3)
    with pytest.raises(UserError, match="into 0 groups"):
        _method(bn_groups=0)
