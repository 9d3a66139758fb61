import json
import signal
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_methods

from pretrain import command as pretrain_command
from pretrain import loop, optim, pcl
from pretrain.augment import loader
from pretrain.recipes import moco, simclr, spcl
from pretrain.recipes import pcl as pcl_recipes
from pretrain.recipes.collisions import dial
from protobench.checkpoints import encoders
from protobench.data import image_list
from protobench.runtime import cores, files, signals
from protobench.runtime.errors import UserError

pytestmark = pytest.mark.arithmetic


def _short(recipe, epochs=3, **changes):
    return replace(recipe, train=replace(recipe.train, epochs=epochs, batch_size=32), **changes)


MOCO = _short(moco.MINI, queue=64)
PCL = _short(pcl_recipes.MINI, queue=64, num_prototypes=(5, 10), warmup=1)
PCL_DRAWS = replace(PCL, num_prototypes=(60, 70), num_negatives=10)
SPCL = _short(spcl.MINI, num_prototypes=(8,))
METHODS = tiny_methods(epochs=3) | {
    "moco": MOCO,
    "moco in shuffled groups": replace(MOCO, bn_groups=4),
    "pcl": PCL,
    "pcl with drawn negatives": PCL_DRAWS,
    "collisions, permuted": dial(PCL, 16.0, "permuted"),
    "simclr with LARS": replace(
        _short(simclr.MINI), train=replace(simclr.PAPER.train, epochs=3, batch_size=32)
    ),
    "spcl": SPCL,
    "spcl to the letter": replace(
        SPCL, reset="all", anchors="step", decoupled=True, distance="norm", symmetric=True
    ),
    "spcl with LARS, two K": replace(
        SPCL,
        num_prototypes=(8, 16),
        whiten=16,
        train=replace(spcl.CIFAR10.train, epochs=3, batch_size=32),
    ),
}


def _weights(path):
    return encoders.load(path).backbone.state_dict()


def _losses(path):
    return [
        json.loads(line)["loss"] for line in (path.parent / "log.jsonl").read_text().splitlines()
    ]


def _logged(path):
    """The log and the probes, without times."""
    course = json.loads((path.parent / "course.json").read_text())
    assert [line["epoch"] for line in course["epochs"]] == list(range(len(course["epochs"])))
    lines = course["epochs"] + course["probes"]
    return [
        {name: value for name, value in line.items() if "seconds" not in name} for line in lines
    ]


def _equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(_weights(a).values(), _weights(b).values(), strict=True)
    )


@pytest.fixture(autouse=True)
def _hears_ctrl_c():
    """Shells make background jobs deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STEPS = 6
"""Of an epoch: 200 images in batches of 32."""


class _Clock:
    """Time that stands at the end of the epoch, or runs so fast that every step is saved."""

    def __init__(self, fast):
        self.now, self.fast = 0.0, fast

    def __call__(self):
        self.now += 2 * loop.SAVE_SECONDS if self.fast else 0
        return self.now


def _killed_at(step, recipe, images, out, monkeypatch, *, saving):
    """A run that ends without a word before a step of the whole run; ``saving``: every step was
    saved, or every epoch."""
    monkeypatch.setattr(loop.time, "monotonic", _Clock(saving))
    taken, real = 0, optim.learning_rate

    def die(*args):
        nonlocal taken
        taken += 1
        if taken > step:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(optim, "learning_rate", die)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(recipe, images, out, seed=1)
    monkeypatch.undo()
    assert not (out / "encoder.safetensors").exists()
    state = max(out.glob("checkpoint-*"), default=None)
    return torch.load(state, weights_only=True)["state"]["position"] if state else None


@pytest.mark.parametrize(
    ("step", "saving"),
    [(3, True), (STEPS, False), (STEPS + 3, True), (STEPS + 3, False), (2 * STEPS + 5, True)],
)
@pytest.mark.parametrize("name", METHODS)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(
    name, step, saving, wholes, train_images, tmp_path, monkeypatch
):
    """Within an epoch, of PCL's warm-up and after an E-step too, and between two; from a state
    within the epoch and from its start."""
    at = _killed_at(step, METHODS[name], train_images, tmp_path, monkeypatch, saving=saving)
    assert (len(at["log"]), at["step"]) == (divmod(step, STEPS) if saving else (step // STEPS, 0))
    resumed = loop.pretrain(METHODS[name], train_images, tmp_path, seed=1)
    assert _equal(wholes(name), resumed)
    assert _logged(wholes(name)) == _logged(resumed)
    assert len(_losses(resumed)) == 3
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_run_killed_before_its_first_state_begins_anew(
    wholes, train_images, tmp_path, monkeypatch
):
    assert _killed_at(3, MOCO, train_images, tmp_path, monkeypatch, saving=False) is None
    assert _equal(wholes("moco"), loop.pretrain(MOCO, train_images, tmp_path, seed=1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_on_files_ends_the_same_with_any_workers_also_when_killed(
    train_images, tmp_path, monkeypatch
):
    recipe, found = _short(PCL, 2), set()
    for workers in (0, 1, 3):
        monkeypatch.setattr(cores, "usable", lambda: 8)
        monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
        whole = loop.pretrain(
            recipe, train_images, tmp_path / str(workers), seed=1, workers=workers
        )
        found.add(encoders.digest_of(_weights(whole)))
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    out, taken, real = tmp_path / "killed", 0, optim.learning_rate

    def dies_in_the_second_epoch(*args):
        nonlocal taken
        taken += 1
        if taken == STEPS + 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(optim, "learning_rate", dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(recipe, train_images, out, seed=1, workers=0)
    found.add(
        encoders.digest_of(_weights(loop.pretrain(recipe, train_images, out, seed=1, workers=3)))
    )
    assert taken == 2 * STEPS + 1
    assert len(found) == 1


@pytest.fixture(scope="module")
def wholes(train_images, tmp_path_factory):
    """The encoders of uninterrupted runs."""
    return cache(
        lambda name: loop.pretrain(
            METHODS[name], train_images, tmp_path_factory.mktemp("whole"), seed=1
        )
    )


def test_seeds_and_methods_differ_and_a_seed_repeats(train_images, tmp_path):
    a, b, c = (
        loop.pretrain(_short(MOCO, 1), train_images, tmp_path / name, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert _equal(a, b)
    assert not _equal(a, c)


def test_a_finished_run_is_not_run_again_and_another_run_is_refused(
    train_images, tmp_path, monkeypatch
):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    monkeypatch.setattr(loop.Training, "epoch", lambda *args: pytest.fail("ran again"))
    assert loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1) == path
    with pytest.raises(UserError, match="another run"):
        loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=2)


def test_another_run_s_checkpoint_is_refused_and_the_differences_are_named(
    train_images, tmp_path, monkeypatch
):
    _killed_at(STEPS, MOCO, train_images, tmp_path, monkeypatch, saving=False)
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*")}
    for other, complaint in (
        (replace(MOCO, temperature=0.3), "recipe.temperature is 0.1 there, 0.3 here"),
        (
            replace(MOCO, train=replace(MOCO.train, lr=0.5)),
            "recipe.train.lr is 0.06 there, 0.5 here",
        ),
        (PCL, "method is moco there, pcl here"),
    ):
        with pytest.raises(UserError, match=complaint):
            loop.pretrain(other, train_images, tmp_path, seed=1)
    with pytest.raises(UserError, match="seed is 1 there, 2 here"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=2)
    with pytest.raises(UserError, match=r"data is [0-9a-f]+ there, [0-9a-f]+ here"):
        loop.pretrain(MOCO, train_images.subset(np.arange(150)), tmp_path, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*")} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    ],
    ids=["cut short", "empty", "one bit"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage, wholes, train_images, tmp_path, monkeypatch, capsys
):
    _killed_at(2 * STEPS, MOCO, train_images, tmp_path, monkeypatch, saving=False)
    older, newer = sorted(tmp_path.glob("checkpoint-*"))
    newer.write_bytes(damage(newer.read_bytes()))
    resumed = loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    said = capsys.readouterr().err
    assert f"warning: {newer} is damaged" in said
    assert f"warning: resuming from {older}" in said
    assert _equal(wholes("moco"), resumed)


def test_only_damaged_checkpoints_are_an_error(train_images, tmp_path, monkeypatch):
    _killed_at(2 * STEPS, MOCO, train_images, tmp_path, monkeypatch, saving=False)
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(b"half")
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)


def test_a_folder_may_hold_other_people_s_files(train_images, tmp_path):
    for name in (".notes.bak.tmp", ".x.tmp", "checkpoint-mine.pt", "checkpoint-000001-zz.pt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / f".checkpoint-000001.pt.{2**22 + 1}.tmp").write_text("of a killed process")
    loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    assert {
        path.read_text() for path in (*tmp_path.glob(".*.tmp"), *tmp_path.glob("checkpoint-*"))
    } == {"mine"}
    assert len([*tmp_path.glob(".*.tmp"), *tmp_path.glob("checkpoint-*")]) == 4


def test_milestones_stay(train_images, tmp_path):
    loop.pretrain(_short(MOCO, 4), train_images, tmp_path, seed=1, keep_every=2)
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert [path.stem.rpartition("-")[2] for path in kept] == ["epoch2", "epoch4"]
    assert [
        len(torch.load(path, weights_only=True)["state"]["position"]["log"]) for path in kept
    ] == [2, 4]
    loop.pretrain(_short(MOCO, 4), train_images, tmp_path, seed=1, resume=False)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_full_disk_is_told_and_costs_no_checkpoint(wholes, train_images, tmp_path, monkeypatch):
    """Before anything is written, where it can be known; and where a write fails halfway."""
    _killed_at(2 * STEPS, MOCO, train_images, tmp_path, monkeypatch, saving=False)
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*")}
    with monkeypatch.context() as patched:
        patched.setattr(
            files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})
        )
        with pytest.raises(UserError, match=r"checkpoints need .* GB, 1e-06 GB are free"):
            loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(
            files,
            "sync",
            lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        with pytest.raises(UserError, match="cannot write: No space left on device"):
            loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*")} == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert _equal(wholes("moco"), loop.pretrain(MOCO, train_images, tmp_path, seed=1))


def test_two_runs_do_not_share_a_folder(train_images, tmp_path):
    with (
        files.exclusive_folder(tmp_path, ""),
        pytest.raises(UserError, match="another run is writing"),
    ):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)]
)
def test_a_signal_saves_the_step_and_says_so(
    number, code, command, wholes, world, train_images, tmp_path, monkeypatch
):
    def main():
        return pretrain_command._main("doc", {"mini": MOCO})

    args = ("mini", "--data", world, "--seed", 1, "--out", tmp_path, "--device", "cpu")
    taken, real = 0, optim.learning_rate

    def signalled(*given):
        nonlocal taken
        taken += 1
        if taken == STEPS + 4:
            signal.raise_signal(number)
        return real(*given)

    monkeypatch.setattr(optim, "learning_rate", signalled)
    found, _, err = command(main, *args)
    assert found == code
    assert "the same command continues" in err
    monkeypatch.undo()
    state = torch.load(max(tmp_path.glob("checkpoint-*")), weights_only=True)["state"]["position"]
    assert (len(state["log"]), state["step"]) == (1, 4), "the step was finished and saved"
    assert signal.getsignal(number) is not None
    resumed = loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    assert _equal(wholes("moco"), resumed)


def test_a_second_ctrl_c_quits_at_once(train_images, tmp_path, monkeypatch):
    taken, real = 0, optim.learning_rate

    def signalled(*given):
        nonlocal taken
        taken += 1
        if taken == STEPS + 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # the same one, by way of torchrun
            monkeypatch.setattr(signals, "AGAIN", -1.0)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")
        return real(*given)

    monkeypatch.setattr(optim, "learning_rate", signalled)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    state = torch.load(max(tmp_path.glob("checkpoint-*")), weights_only=True)["state"]["position"]
    assert (len(state["log"]), state["step"]) == (
        1,
        0,
    ), "the epoch's end was saved, the step was not"


def test_divergence_is_reported_and_keeps_the_last_good_checkpoint(
    train_images, tmp_path, monkeypatch
):
    real = optim.learning_rate
    monkeypatch.setattr(
        optim,
        "learning_rate",
        lambda train, epoch, *rest: real(train, epoch, *rest) if epoch < 1 else 1e30,
    )
    with pytest.raises(UserError, match="not finite in epoch 1"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    assert not (tmp_path / "encoder.safetensors").exists()
    kept = torch.load(max(tmp_path.glob("checkpoint-*")), weights_only=True)["state"]
    assert [line["epoch"] for line in kept["position"]["log"]] == [0]
    assert all(
        torch.isfinite(tensor).all()
        for tensor in kept["method"].values()
        if isinstance(tensor, torch.Tensor)
    )


def test_training_anew_forgets_the_old_run_at_once(train_images, tmp_path, monkeypatch):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    monkeypatch.setattr(
        loop.Training, "epoch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1, resume=False)
    assert not path.exists(), "a later run must not return the old encoder"


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"batch_size": 0}, {"lr": float("nan")}, {"weight_decay": -1.0}]
)
def test_senseless_settings_are_refused(wrong, train_images, tmp_path):
    with pytest.raises(UserError):
        loop.pretrain(
            replace(MOCO, train=replace(MOCO.train, **wrong)), train_images, tmp_path, seed=1
        )


def test_a_damaged_encoder_is_trained_again(train_images, tmp_path, capsys):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1) == path
    assert path.stat().st_size == len(whole)
    assert "training again" in capsys.readouterr().out


def test_more_clusters_than_images_is_a_clear_error(train_images, tmp_path):
    with pytest.raises(UserError, match="2000 clusters requested of 200 images"):
        loop.pretrain(replace(PCL, num_prototypes=(2000,)), train_images, tmp_path, seed=1)


def test_a_data_set_smaller_than_a_batch_is_a_clear_error(train_images, tmp_path):
    with pytest.raises(UserError, match="less than one batch"):
        loop.pretrain(_short(moco.MINI), train_images.subset(np.arange(20)), tmp_path, seed=1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_views_read_from_files_do_not_depend_on_workers(train_images, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 8)
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    seen = []
    for workers in (0, 1, 3):
        source = loader.open_views(MOCO, train_images, 1, "cpu", workers)
        assert isinstance(source, loader.FolderViews)
        (first, second), index = next(source.batches(2, 2, source.order(2)))
        seen.append((first, second, index, next(source.centre_crops(source.parts()))))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_images_of_different_sizes_are_read_from_files(tmp_path):
    (tmp_path / "a").mkdir()
    for i, size in enumerate([(64, 64)] + [(64, 90)] * 39):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / "a" / f"{i:02d}.png")
    opened = loader.open_views(
        replace(MOCO, queue=32), image_list.image_folder(tmp_path, "x"), 1, "cpu", 0
    )
    assert isinstance(opened, loader.FolderViews)


def test_centre_crops_are_the_same_from_files_and_from_memory(train_images, monkeypatch):
    memory = loader.open_views(MOCO, train_images, 1, "cpu", 0)
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    files_ = loader.open_views(MOCO, train_images, 1, "cpu", 0)
    memory, files_ = (
        torch.cat(list(source.centre_crops(source.parts()))) for source in (memory, files_)
    )
    assert torch.equal(memory, files_)


def test_an_epoch_s_order_is_a_permutation_of_its_own():
    first, second = loader.order(100, 8, 1, 0), loader.order(100, 8, 1, 1)
    assert first.shape == (12, 8)
    assert len(np.unique(first)) == 96
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, loader.order(100, 8, 1, 0))


def test_pcl_s_e_step_sees_images_in_data_set_order(train_images, tmp_path):
    source = loader.open_views(PCL, train_images, 1, "cpu", 0)
    training = loop.Training(PCL, pcl.build(PCL, torch.zeros(200), 0, 1), source)
    features = training.extract(torch.nn.Flatten())
    assert features.shape == (200, 3 * 32 * 32)
    crop = PCL.input.pixels(train_images.read(123)) / 255
    expected = (
        ((crop - np.array(PCL.input.mean)) / np.array(PCL.input.std)).transpose(2, 0, 1).reshape(-1)
    )
    np.testing.assert_allclose(features[123], expected, atol=1e-5)


def test_the_command_line_trains_and_says_where(command, world, tmp_path):
    def main():
        return pretrain_command._main("doc", {"mini": MOCO})

    code, out, err = command(
        main, "mini", "--data", world, "--epochs", 1, "--out", tmp_path / "run", "--device", "cpu"
    )
    assert code == 0, err
    assert "evaluate/lowshot.py --ckpt" in out
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    code, _, err = command(main, "mini", "--data", tmp_path / "absent")
    assert code == 2
    assert "no such folder" in err
    assert "Traceback" not in err
    code, _, err = command(main, "mini", "--data", world, "--arch", "resnet5")
    assert code == 2
    assert "did you mean" in err


def test_cuda_without_a_gpu_is_a_clear_error(train_images):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="no GPU"):
        pretrain_command.train(MOCO, pretrain_command.Run(device="cuda"))


@pytest.mark.gpu
def test_pcl_trains_on_a_gpu(train_images, tmp_path):
    path = loop.pretrain(PCL_DRAWS, train_images, tmp_path, seed=1, device="cuda")
    assert np.isfinite(_losses(path)).all()
