"""The suite under a GPU that is a CPU (claimed_device.py): every method and every evaluation must
give the CPU's numbers. Tests marked ``gpu`` run under it too (conftest.py)."""

import json

import claimed_device
import pretended
import pytest
import torch
from test_distributed import evaluated
from test_loop import METHODS, STEPS

from pretrain import loop, optim
from pretrain.augment import tensor
from protobench.checkpoints import encoders


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_cpu_s_numbers_and_no_step_waits(
    name, train_images, tmp_path, monkeypatch
):
    """Three epochs, with E-steps and measurements, killed within the second and resumed."""
    monkeypatch.setattr(tensor, "_BLOCK_BYTES", 2**40)  # as on a GPU
    step, rate, waited = loop.update, optim.learning_rate, []

    def trained(device):
        out = tmp_path / device
        path = loop.pretrain(METHODS[name], train_images, out, seed=1, device=device)
        course = json.loads((out / "course.json").read_text())
        for line in course["epochs"] + course["probes"]:
            line.update({key: 0 for key in line if "seconds" in key})
        return encoders.load(path).backbone.state_dict(), course

    def killed(*args):
        if len(waited) == STEPS + 3:
            raise KeyboardInterrupt
        return rate(*args)

    weights, course = trained("cpu")
    with claimed_device.device() as gpu:

        def watched(*args):
            gpu.waits.clear()
            loss = step(*args)
            waited.append(list(gpu.waits))
            return loss

        monkeypatch.setattr(loop, "update", watched)
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
        monkeypatch.setattr(optim, "learning_rate", killed)
        with pytest.raises(KeyboardInterrupt):
            trained("cuda")
        monkeypatch.setattr(optim, "learning_rate", rate)
        found, same_course = trained("cuda")
    assert same_course == course
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert len(waited) == 3 * STEPS
    # the sums of an epoch begin on the host
    assert all(len(at) <= 1 and "similarity" in at[0] for at in waited[::STEPS] if at)
    assert not any(at for number, at in enumerate(waited) if number % STEPS)


@pytest.mark.filterwarnings("ignore")
def test_evaluations_give_the_cpu_s_numbers(
    moco_file, world, scene_data, tmp_path, monkeypatch, mmdet
):
    """And none selects by a mask or by numbers on the host, which their steps would wait for."""
    found = {}
    with claimed_device.device() as gpu:
        for device in ("cpu", "cuda"):
            monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / device))
            found[device] = evaluated(tmp_path / device, moco_file, world, scene_data, device)
    for name, record in found["cpu"].items():
        assert found["cuda"][name]["runs"] == record["runs"], name
    ours = ("evaluate/", "protobench/")
    assert not [at for at in gpu.waits if at.startswith(ours) and "item__" in at]


@pytest.mark.parametrize("mistake", pretended.mistakes(None))
def test_mistakes_are_seen(mistake):
    with claimed_device.device() as gpu:
        work = pretended.mistakes(torch.randn(8, 4, device="cuda"))[mistake]
        gpu.waits.clear()
        told = ""
        try:
            work()
        except (RuntimeError, TypeError) as failure:
            told = str(failure)
        assert "device" in told or gpu.waits
        if gpu.waits:
            torch.cuda.set_sync_debug_mode("error")
            with pytest.raises(RuntimeError, match="called a synchronizing"):
                work()


def test_a_generator_of_the_other_device_is_refused():
    with claimed_device.device():
        drawn = torch.randperm(9, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
        assert drawn.device == torch.device("cuda", 0)
        for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
            with pytest.raises(RuntimeError, match="generator"):
                torch.randperm(9, device=device, generator=torch.Generator(other))
    assert torch.equal(drawn.cpu(), torch.randperm(9, generator=torch.Generator().manual_seed(0)))
