import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain import command as pretrain_command
from pretrain import loop, optim, recipes, views
from protobench import checkpoints, images
from protobench.errors import UserError


def _short(recipe, epochs=3, **changes):
    return replace(recipe, train=replace(recipe.train, epochs=epochs, batch_size=32), **changes)


MOCO = _short(recipes.MOCO_MINI, queue=64)
PCL = _short(recipes.PCL_MINI, queue=64, num_prototypes=(5, 10), warmup=1)
PCL_DRAWS = replace(PCL, num_prototypes=(60, 70), num_negatives=10)
SPCL = _short(recipes.SPCL_MINI, num_prototypes=(8,))
METHODS = {"moco": MOCO, "moco in shuffled groups": replace(MOCO, bn_groups=4), "pcl": PCL,
           "pcl with drawn negatives": PCL_DRAWS, "simclr": _short(recipes.SIMCLR_MINI),
           "simclr with LARS": replace(_short(recipes.SIMCLR_MINI), train=replace(recipes.SIMCLR.train, epochs=3, batch_size=32)),
           "supervised": _short(recipes.SUPERVISED_MINI), "spcl": SPCL,
           "spcl to the letter": replace(SPCL, reset="all", anchors="step", decoupled=True, distance="norm", symmetric=True),
           "spcl with LARS, two K": replace(SPCL, num_prototypes=(8, 16), whiten=16,
                                            train=replace(recipes.SPCL_CIFAR10.train, epochs=3, batch_size=32))}


def _weights(path):
    return checkpoints.load(path).backbone.state_dict()


def _losses(path):
    return [json.loads(line)["loss"] for line in (path.parent / "log.jsonl").read_text().splitlines()]


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(_weights(a).values(), _weights(b).values(), strict=True))


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_stopped_after_any_epoch_ends_as_if_it_had_not_been(name, stop, train_images, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, after ``stop`` whole ones: for PCL at the end of warm-up and after an E-step."""
    recipe = METHODS[name]
    whole = loop.pretrain(recipe, train_images, tmp_path / "whole", seed=1)
    steps = 0

    def stop_in_the_middle(*args):
        nonlocal steps
        steps += 1
        if steps == 6 * stop + 3:  # six steps an epoch
            raise KeyboardInterrupt
        return real(*args)

    real = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(recipe, train_images, tmp_path / "stopped", seed=1)
    assert not (tmp_path / "stopped" / "encoder.safetensors").exists()
    monkeypatch.setattr(optim, "learning_rate", real)
    resumed = loop.pretrain(recipe, train_images, tmp_path / "stopped", seed=1)
    assert _equal(whole, resumed)
    assert _losses(whole) == _losses(resumed)
    assert len(_losses(whole)) == 3
    assert not (tmp_path / "stopped" / "checkpoint.pt").exists()


def test_seeds_and_methods_differ_and_a_seed_repeats(train_images, tmp_path):
    a, b, c = (loop.pretrain(_short(MOCO, 1), train_images, tmp_path / name, seed=seed)
               for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert _equal(a, b)
    assert not _equal(a, c)


def test_a_finished_run_is_not_run_again_and_another_run_is_refused(train_images, tmp_path, monkeypatch):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    monkeypatch.setattr(loop, "_epoch", lambda *args: pytest.fail("ran again"))
    assert loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1) == path
    with pytest.raises(UserError, match="another run"):
        loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=2)


def test_foreign_and_damaged_checkpoints_are_refused(train_images, tmp_path):
    torch.save({"key": "other", "log": [], "probes": [], "method": {}, "optimizer": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="another run"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="not one of this program's"):
            loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)


def test_divergence_is_reported_and_keeps_the_last_good_checkpoint(train_images, tmp_path, monkeypatch):
    real = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", lambda train, epoch, *rest: real(train, epoch, *rest) if epoch < 1 else 1e30)
    with pytest.raises(UserError, match="not finite in epoch 1"):
        loop.pretrain(MOCO, train_images, tmp_path, seed=1)
    assert not (tmp_path / "encoder.safetensors").exists()
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [line["epoch"] for line in kept["log"]] == [0]
    assert all(torch.isfinite(tensor).all() for tensor in kept["method"].values() if isinstance(tensor, torch.Tensor))


def test_training_anew_forgets_the_old_run_at_once(train_images, tmp_path, monkeypatch):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    monkeypatch.setattr(loop, "_epoch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1, resume=False)
    assert not path.exists(), "a later run must not return the old encoder"


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 0}, {"lr": float("nan")}, {"weight_decay": -1.0}])
def test_senseless_settings_are_refused(wrong, train_images, tmp_path):
    with pytest.raises(UserError):
        loop.pretrain(replace(MOCO, train=replace(MOCO.train, **wrong)), train_images, tmp_path, seed=1)


def test_a_damaged_encoder_is_trained_again(train_images, tmp_path, capsys):
    path = loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert loop.pretrain(_short(MOCO, 1), train_images, tmp_path, seed=1) == path
    assert path.stat().st_size == len(whole)
    assert "training again" in capsys.readouterr().out


def test_more_clusters_than_images_is_a_clear_error(train_images, tmp_path):
    with pytest.raises(UserError, match="2000 clusters asked of 200 images"):
        loop.pretrain(replace(PCL, num_prototypes=(2000,)), train_images, tmp_path, seed=1)


def test_a_data_set_smaller_than_a_batch_is_a_clear_error(train_images, tmp_path):
    with pytest.raises(UserError, match="less than one batch"):
        loop.pretrain(_short(recipes.MOCO_MINI), train_images.subset(np.arange(20)), tmp_path, seed=1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_views_read_from_files_do_not_depend_on_workers(train_images, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(views, "IN_MEMORY_BYTES", 0)
    seen = []
    for workers in (0, 1, 3):
        source = views.open_views(MOCO, train_images, 1, "cpu", workers)
        assert isinstance(source, views.FolderViews)
        (first, second), index = next(source.batches(2, 2, source.order(2)))
        seen.append((first, second, index, next(source.centre_crops())))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_images_of_different_sizes_are_read_from_files(tmp_path):
    (tmp_path / "a").mkdir()
    for i, size in enumerate([(64, 64)] + [(64, 90)] * 39):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / "a" / f"{i:02d}.png")
    assert isinstance(views.open_views(MOCO, images.image_folder(tmp_path, "x"), 1, "cpu", 0), views.FolderViews)


def test_centre_crops_are_the_same_from_files_and_from_memory(train_images, monkeypatch):
    memory = torch.cat(list(views.open_views(MOCO, train_images, 1, "cpu", 0).centre_crops()))
    monkeypatch.setattr(views, "IN_MEMORY_BYTES", 0)
    files_ = torch.cat(list(views.open_views(MOCO, train_images, 1, "cpu", 0).centre_crops()))
    assert torch.equal(memory, files_)


def test_an_epoch_s_order_is_a_permutation_of_its_own():
    first, second = views.order(100, 8, 1, 0), views.order(100, 8, 1, 1)
    assert first.shape == (12, 8)
    assert len(np.unique(first)) == 96
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, views.order(100, 8, 1, 0))


def test_pcl_s_e_step_sees_images_in_data_set_order(train_images, tmp_path):
    source = views.open_views(PCL, train_images, 1, "cpu", 0)
    method = torch.nn.Flatten()
    features = loop._extract(method, source)
    assert features.shape == (200, 3 * 32 * 32)
    crop = PCL.input.pixels(train_images.read(123)) / 255
    expected = ((crop - np.array(PCL.input.mean)) / np.array(PCL.input.std)).transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(features[123], expected, atol=1e-5)


def test_the_command_line_trains_and_says_where(command, world, tmp_path):
    def main():
        return pretrain_command._main("doc", {"mini": MOCO})

    code, out, err = command(main, "mini", "--data", world, "--epochs", 1, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0, err
    assert "evaluate/lowshot.py --ckpt" in out
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    code, _, err = command(main, "mini", "--data", tmp_path / "absent")
    assert code == 2
    assert "no such folder" in err
    assert "Traceback" not in err
    code, _, err = command(main, "mini", "--arch", "resnet5")
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
