"""Views of files: the faithful profile against torchvision, the raw one against the
faithful."""

import io
import itertools
import pickle
import resource
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pretrain import loop
from pretrain.augment import loader, pillow
from pretrain.augment.params import ParamSampler
from pretrain.recipes import common, moco, simclr, supervised
from protobench.checkpoints import encoders
from protobench.data import image_list, raw_pictures
from protobench.data.image_list import ImageList
from protobench.runtime import cores, files
from protobench.runtime.errors import UserError

RECIPES = {
    "v1": moco.V1.augment,
    "v2": moco.V2_AUGMENT,
    "simclr": simclr.PAPER.augment,
    "supervised": supervised.PAPER.augment,
    "mini": moco.MINI.augment,
    "extreme": replace(
        moco.V2_AUGMENT,
        jitter=(1.0, 1.0, 1.0, 0.5),
        jitter_p=1.0,
        blur=1.0,
        size=96,
        grayscale=0.4,
    ),
    "grey first": replace(moco.V1.augment, grayscale=0.9, blur=0.5, size=64),
}


class _Blur(torch.nn.Module):
    def forward(self, image):
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def torchvisions(recipe, picture, seed):
    """The transforms as published code stacks them, on a PIL picture: uint8 [size, size, 3]."""
    colour = [
        v2.RandomApply([v2.ColorJitter(*recipe.jitter)], p=recipe.jitter_p),
        v2.RandomGrayscale(recipe.grayscale),
    ]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(
                recipe.size,
                scale=(recipe.min_area, 1.0),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            *(reversed(colour) if recipe.grayscale_first else colour),
            v2.RandomApply([_Blur()], p=recipe.blur),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.PILToTensor(),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(picture).permute(1, 2, 0).numpy()


def _picture(kind, width, height, seed):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3)
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    y, x = np.mgrid[:height, :width][..., None] / max(width, height)
    smooth = 127 + 120 * np.sin(
        6 * (x * rng.normal(size=3) + y * rng.normal(size=3)) + rng.uniform(0, 6, 3)
    )
    return Image.fromarray(
        {
            "noise": noise,
            "black": noise * 0,
            "white": noise * 0 + 255,
            "grey": np.repeat(noise[:, :, :1], 3, 2),
            "primary": noise // 128 * 255,
            "flat": np.broadcast_to(noise[:1, :1], shape).copy(),
            "dark": noise // 64,
            "smooth": smooth.astype(np.uint8),
        }[kind]
    )


# Faithful -----------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(RECIPES)),
    st.sampled_from(["noise", "black", "white", "grey", "primary", "flat", "dark", "smooth"]),
    st.sampled_from(
        [
            (500, 375),
            (375, 500),
            (8, 8),
            (1, 1),
            (700, 9),
            (9, 700),
            (224, 224),
            (3, 50),
            (64, 96),
            (33, 32),
        ]
    ),
    st.integers(0, 2**40),
)
def test_every_pixel_is_torchvision_s(name, kind, extent, seed):
    recipe, picture = RECIPES[name], _picture(kind, *extent, seed % 1000)
    drawer = ParamSampler(recipe)
    for key in (seed, seed + 1, seed + 2):
        ours = pillow.render(picture, drawer(*extent, key), recipe.size)
        np.testing.assert_array_equal(ours, torchvisions(recipe, picture, key))


@pytest.mark.parametrize(
    "factors",
    [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.5), (0.6, 1.4, 1.4, -0.5), (1.8, 0.2, 0.0, -0.004)],
)
def test_jitter_in_every_order(factors):
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for order in itertools.permutations(range(4)):
        theirs = ours = _picture("noise", 40, 30, sum(order[:2]))
        for kind in order:
            theirs, ours = (
                steps[kind](theirs, factors[kind]),
                pillow._jittered(ours, kind, factors[kind]),
            )
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("steps", [0, 1, 37, 128, 255])
def test_hue_of_every_seventh_colour(steps):
    """Of all pairs of green and blue. Pillow's own way: to HSV in bytes, and back."""
    level = np.arange(256, dtype=np.uint8)
    for red in range(steps % 7, 256, 7):
        rgb = np.stack(np.broadcast_arrays(np.uint8(red), level[:, None], level[None]), -1).copy()
        h, s, v = Image.fromarray(rgb).convert("HSV").split()
        theirs = Image.merge(
            "HSV", (Image.fromarray(np.asarray(h) + np.uint8(steps)), s, v)
        ).convert("RGB")
        np.testing.assert_array_equal(pillow.hue_shifted(rgb, steps), np.asarray(theirs))


def test_blur_at_every_sigma_and_mostly_without_pillow():
    noise = _picture("noise", 48, 40, 0)
    by_pillow = 0
    for sigma in np.linspace(0.1, 2.0, 400):
        by_pillow += pillow._box(float(sigma)) is None
        for picture in (noise, noise.convert("L")):
            np.testing.assert_array_equal(
                pillow._blurred(picture, float(sigma)),
                np.asarray(picture.filter(ImageFilter.GaussianBlur(float(sigma)))),
            )
    assert by_pillow < 100, "what is left to Pillow is slow"


def test_a_view_is_its_key_s_and_leaves_torchs_generator_alone():
    recipe = replace(moco.V2_AUGMENT, size=32)
    picture, drawer = _picture("smooth", 80, 60, 1), ParamSampler(recipe)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = pillow.render(picture, drawer(80, 60, 5), 32)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, pillow.render(picture, drawer(80, 60, 5), 32))
    assert not np.array_equal(first, pillow.render(picture, drawer(80, 60, 6), 32))


# Raw -------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> ImageList:
    """Twenty pictures of many sizes in two classes."""
    for i in range(20):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        _picture("smooth", 300 + 10 * i, 290 - 10 * i, i).save(folder / f"{i:02d}.png")
    return image_list.image_folder(tmp_path / "photos", "photos")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raw"


def test_kept_pictures_are_the_pictures(photos, own_cache):
    kept = raw_pictures.keep(photos, 0)
    assert len(kept) == 20
    assert min(kept[0].shape[:2]) == 256, "shrunk"
    assert kept[19].shape[:2] == (100, 490), "smaller ones stay as they are"
    for i in range(20):
        np.testing.assert_array_equal(kept[i], raw_pictures.small(photos.read(i)))
    raw_pictures.keep(photos.subset(np.arange(19)), 0)
    assert len(list(own_cache.glob("*.u8"))) == 2, "another list, another file"
    assert len(pickle.dumps(kept)) < 1000, "a worker is sent the path, not the pictures"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kept))[7], kept[7])


def test_keeping_goes_on_where_it_was_stopped(photos, own_cache, monkeypatch):
    whole = raw_pictures.keep(photos, 0)
    expected = [whole[i].copy() for i in range(20)]
    for path in own_cache.iterdir():
        path.unlink()
    read, seen = ImageList.read, []

    def stop(self, index):
        seen.append(index)
        if len(seen) == 12:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(raw_pictures, "SYNC_SECONDS", -1.0)
    monkeypatch.setattr(ImageList, "read", stop)
    monkeypatch.setattr(raw_pictures._write, "__defaults__", (4,))
    with pytest.raises(KeyboardInterrupt):
        raw_pictures.keep(photos, 0)
    assert not list(own_cache.glob("*.u8"))
    (growing,) = own_cache.glob("*.partial")
    with open(growing, "ab") as file:
        file.write(b"half a picture")
    seen.clear()
    monkeypatch.setattr(
        ImageList, "read", lambda self, index: seen.append(index) or read(self, index)
    )
    again = raw_pictures.keep(photos, 0)
    assert seen == list(range(8, 20)), "eight were on the disk"
    assert all(np.array_equal(again[i], expected[i]) for i in range(20))


def test_bad_pictures_full_disks_and_damaged_files_are_told(photos, own_cache, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda folder: type("Disk", (), {"free": 10**6})
    )
    with pytest.raises(UserError, match=r"the decoded images need 0\.0\d+ GB"):
        raw_pictures.keep(photos, 0)
    monkeypatch.undo()
    monkeypatch.setenv("PROTOBENCH_CACHE", str(own_cache.parent))
    raw_pictures.keep(photos, 0)
    (path,) = own_cache.glob("*.u8")
    whole, sizes = path.read_bytes(), path.with_suffix(".npy").read_bytes()
    for damage in (
        lambda: path.write_bytes(whole[:-1]),
        lambda: path.write_bytes(b""),
        lambda: path.with_suffix(".npy").write_bytes(sizes[:50]),
        lambda: path.with_suffix(".npy").unlink(),
    ):
        damage()
        with pytest.raises(UserError, match="damaged") as refusal:
            raw_pictures.keep(photos, 0)
        assert path.name in str(refusal.value)
        assert path.with_suffix(".npy").name in str(refusal.value)
        path.write_bytes(whole)
        path.with_suffix(".npy").write_bytes(sizes)
    path.rename(path.with_suffix(".partial"))
    path.with_suffix(".partial").write_bytes(bytes(len(whole)))
    path.with_suffix(".npy").unlink()
    np.testing.assert_array_equal(
        raw_pictures.keep(photos, 0)[3], raw_pictures.small(photos.read(3))
    )
    buffer = io.BytesIO()
    _picture("noise", 64, 64, 0).save(buffer, "JPEG")
    for i in range(2):
        (photos.root / "ab"[i] / "zz.jpg").write_bytes(
            buffer.getvalue()[: len(buffer.getvalue()) // 2]
        )
    with pytest.raises(UserError, match="cannot decode image 10") as refusal:
        raw_pictures.keep(image_list.image_folder(photos.root, "photos"), 0)
    assert "zz.jpg" in str(refusal.value)


def test_a_disk_that_fills_up_is_told(photos, own_cache):
    """A limit on the size of a file stands in for the disk; a soft one, which may be raised
    again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "as Python has it: an error instead"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write: File too large"):
            raw_pictures.keep(photos, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _recipe(profile):
    return replace(
        moco.MINI,
        queue=16,
        train=replace(moco.MINI.train, epochs=1, batch_size=8),
        augment=replace(moco.V2_AUGMENT, size=32, profile=profile),
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("profile", ["faithful", "raw"])
def test_views_of_every_profile_do_not_depend_on_workers_or_batches(
    profile, photos, own_cache, monkeypatch
):
    monkeypatch.setattr(cores, "usable", lambda: 8)
    seen = []
    for workers in (0, 2):
        source = loader.open_views(_recipe(profile), photos, 1, "cpu", workers)
        order = source.order(2)
        seen.append(
            [
                torch.cat(view)
                for view in zip(*(batch for batch, _ in source.batches(2, 2, order)), strict=True)
            ]
        )
        seen.append(
            [
                torch.cat(view)
                for view in zip(
                    *(batch for batch, _ in source.batches(2, 2, order.reshape(1, -1))), strict=True
                )
            ]
        )
    assert seen[0][0].shape == (16, 3, 32, 32)
    assert not torch.equal(seen[0][0], seen[0][1])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    (view,) = source.one_view(2, source.parts())
    assert view.shape == (20, 3, 32, 32)
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_raw_views_are_coloured_each_by_itself(photos, own_cache):
    """On the device: grey where the recipe says always, blurred, and the two views otherwise than
    one another."""

    def views_of(**changes):
        recipe = replace(
            _recipe("raw"),
            augment=replace(_recipe("raw").augment, min_area=1.0, flip=0.0, **changes),
        )
        source = loader.open_views(recipe, photos, 1, "cpu", 0)
        return next(batch for batch, _ in source.batches(0, 2, np.arange(4)[None]))

    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (moco.MINI.input.mean, moco.MINI.input.std)
    )
    plain = {"jitter_p": 0.0, "grayscale": 0.0, "blur": 0.0}
    for view in views_of(**plain | {"grayscale": 1.0}):
        pixels = view * std + mean
        torch.testing.assert_close(pixels[:, :1].expand_as(pixels), pixels, atol=1e-4, rtol=0)
    first, second = views_of(**plain)
    coloured, otherwise = views_of(**plain | {"jitter_p": 1.0})
    assert (coloured - first).abs().mean() > 0.05
    assert ((coloured - first) - (otherwise - second)).abs().mean() > 0.05, (
        "each view has its own colours"
    )
    blurred, _ = views_of(**plain | {"blur": 1.0})
    assert blurred.diff(dim=3).abs().mean() < 0.95 * first.diff(dim=3).abs().mean()


def test_profiles_show_the_same_part_of_a_picture(photos, own_cache):
    """Colours apart: the crop of raw is near that of faithful, though its picture is smaller."""
    crops = replace(RECIPES["v1"], size=64, jitter_p=0.0, grayscale=0.0)
    plain = {
        profile: replace(_recipe(profile), augment=replace(crops, profile=profile))
        for profile in ("faithful", "raw")
    }
    shown = {}
    for profile, recipe in plain.items():
        source = loader.open_views(recipe, photos, 1, "cpu", 0)
        shown[profile] = torch.cat(
            [batch[0] for batch, _ in source.batches(0, 1, np.arange(20).reshape(5, 4))]
        )
    for i in range(20):
        raw, faithful = (shown[profile][i].flatten() for profile in ("raw", "faithful"))
        assert np.corrcoef(raw, faithful)[0, 1] > 0.97, i


def test_pretraining_on_another_profile_is_another_run(photos, own_cache, tmp_path):
    path = loop.pretrain(_recipe("raw"), photos, tmp_path / "raw", seed=1)
    report = encoders.load(path).report
    assert report.trained["recipe"]["augment"]["profile"] == "raw"
    assert common.run_key(_recipe("raw"), photos, 1) != common.run_key(
        _recipe("faithful"), photos, 1
    )


def test_data_held_in_memory_has_no_profiles(train_images):
    with pytest.raises(UserError, match="there is no profile raw"):
        loader.open_views(_recipe("raw"), train_images, 1, "cpu", 0)


def test_a_worker_is_one_thread(photos):
    cv2.setNumThreads(4)
    pickle.loads(pickle.dumps(loader._RandomViews(photos, moco.V2_AUGMENT, 0, 0, (0, 1), None)))[3]
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter": (0.4, 0.4, 0.4, 0.7)},
        {"jitter": (-0.1, 0, 0, 0)},
        {"blur": 2.0},
        {"flip": -0.1},
        {"min_area": 1.5},
        {"min_area": 0.0},
        {"size": 0},
    ],
)
def test_views_that_cannot_be_are_refused(wrong, train_images, tmp_path):
    recipe = replace(moco.MINI, augment=replace(moco.MINI.augment, **wrong))
    with pytest.raises(UserError, match="--"):
        loop.pretrain(recipe, train_images, tmp_path, seed=1)


def test_a_cache_that_cannot_be_written_is_told(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROTOBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write"):
        raw_pictures.keep(photos, 0)
