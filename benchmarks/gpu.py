"""Times training steps, PCL's E-step, k-means, neighbours and views on a GPU, at ImageNet's shapes
and on synthetic data.

    python benchmarks/gpu.py                         # about ten minutes on one GPU
    python benchmarks/gpu.py --only steps kmeans
    python benchmarks/gpu.py --device cpu --tiny     # tries the code without a GPU; writes nothing

Writes results/benchmarks-<name of the GPU>.md. Steps have the papers' batches. The "published" step
is a plain eager one with convolutions in TF32, torch's default, and the default layout. A step's
limit is the larger of two times: that of its arithmetic at this GPU's own peak, measured on random
numbers (a GPU is faster on constant ones), and that of its memory traffic, every operator reading
its inputs and writing its outputs once, at the bandwidth of a copy. k-means by faiss is what the
suite calls, from the host's memory and with the assignment; fastkmeans and flash-kmeans run beside
it where they are installed (pip install fastkmeans flash-kmeans), in the precision that they
choose; the inertia of all is computed in fp32. Times are wall times with a synchronisation at both
ends. A stage that fails is reported and the others still run; stages for which no time is left are
named."""

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from all import RESULTS, machine, page
from alternate import Figure, Ratio, alternate, middle

from evaluate import knn
from pretrain import gpu_memory, loop, optim
from pretrain.augment import tensor
from pretrain.precision import autocast
from pretrain.recipes import common, simclr, spcl
from pretrain.recipes import moco as moco_recipes
from pretrain.recipes import pcl as pcl_recipes
from protobench.checkpoints.resnet import named
from protobench.kmeans import kmeans
from protobench.runtime import devices, files
from protobench.runtime.precision import Precision, arithmetic

FORWARD, BACKWARD = 6, 9
"""How often a convolution's output passes the memory: in its forward pass, that of BatchNorm and
that of ReLU each reads one and writes one, in the backward passes each reads two and writes one.
Residual additions, losses and the optimiser come on top."""
AT_AN_H100_S_LIMITS = {"fp32": (1.27, 1.20), "tf32": (1.47, 1.31), "bf16": (1.67, 1.35)}
"""An epoch of PCL over one of MoCo, with five starts of k-means and with one, computed from the
operators' shapes for 798 (bf16), 400 (TF32) and 60 TFLOP/s (fp32, and k-means always) and 3 TB/s.
The faster the steps, the more weighs k-means, which stays in fp32."""
RECIPES: dict[str, common.Recipe] = {
    "moco": moco_recipes.V2,
    "simclr": simclr.PAPER,
    "pcl": pcl_recipes.V2,
    "spcl": spcl.IMAGENET,
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of ImageNet; TINY has those that a CPU can try."""

    images: int = 1_281_167
    batch: int = 256
    """of extraction and views; steps have their recipe's, unless ``small``"""
    pixels: int = 224
    arch: str = "resnet50"
    prototypes: tuple[int, ...] = (25_000, 50_000, 100_000)
    negatives: int = 16_384
    width: int = 2048
    queries: int = 50_000
    steps: int = 10
    small: bool = False


TINY = Sizes(2000, 16, 32, "resnet10-mini", (20, 40), 10, 32, 100, 2, small=True)


def wait(device: str) -> None:
    """Waits until the device has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize()


def spent(work: Callable[[], Any], device: str) -> float:
    """Returns the seconds of one call."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def peak_memory(device: str) -> str:
    """Returns the peak memory in GiB since the last call, as text."""
    if device == "cpu":
        return ""
    gib = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f", at most {gib:.1f} GiB"


MEASURED: dict[str, float] = {}
"""Seconds that a later stage needs: of a step, by method, and of k-means, by K."""
DEADLINE = 450.0
"""Seconds after which no stage starts."""


@cache
def flops(precision: Precision, device: str) -> float:
    """Measures the operations per second of large matrix products of random numbers: of constant
    ones, fewer bits change, and a GPU at its limit of power is a tenth faster."""
    side = 8192 if device != "cpu" else 512
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul: Any = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if precision == "tf32" else "ieee"
    try:
        seconds = min(spent(lambda: [a @ b for _ in range(5)], device) for _ in range(4)) / 5
    finally:
        matmul.fp32_precision = before
    return 2 * side**3 / seconds


@cache
def bandwidth(device: str) -> float:
    """Measures the bytes per second of a copy within the device's memory, read and written."""
    numbers = torch.randn(2**28 if device != "cpu" else 2**22, device=device)
    there = torch.empty_like(numbers)
    seconds = min(spent(lambda: there.copy_(numbers), device) for _ in range(5))
    return 2 * numbers.nbytes / seconds


def limit(recipe: common.Recipe, images: int, precision: Precision, device: str) -> float:
    """The seconds that a step of ``images`` images takes at least: see above."""
    layers = list(gpu_memory.convolutions(named(recipe.arch), recipe.augment.size))
    views = recipe.trained_views + recipe.momentum_views
    operations = sum(layer.flops for layer in layers) * (views + 2 * recipe.trained_views)
    passes = FORWARD * views + BACKWARD * recipe.trained_views
    moved = sum(layer.out for layer in layers) * passes * (2 if precision == "bf16" else 4)
    return images * max(operations / flops(precision, device), moved / bandwidth(device))


# Training -----------------------------------------------------------------------------------------


def recipe_of(name: str, sizes: Sizes) -> common.Recipe:
    """The paper's recipe, or a small one of the same method."""
    recipe = RECIPES[name]
    if sizes.small:
        recipe = replace(
            recipe,
            arch=sizes.arch,
            augment=replace(recipe.augment, size=sizes.pixels),
            train=replace(recipe.train, batch_size=sizes.batch),
        )
        if isinstance(recipe, moco_recipes.MoCo):
            recipe = replace(recipe, queue=4 * sizes.batch)
            recipe = replace(recipe, bn_groups=1 if sizes.batch < 32 else recipe.bn_groups)
        if isinstance(recipe, spcl.SPCL):
            recipe = replace(recipe, num_prototypes=(sizes.images // 20,))
    if isinstance(recipe, pcl_recipes.PCL):
        recipe = replace(recipe, num_prototypes=sizes.prototypes, num_negatives=sizes.negatives)
    return recipe


class Step:
    """Updates a method on one batch of random images, in one precision and layout."""

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        device: str,
        precision: Any,
        layout: torch.memory_format,
        compiled: bool,
    ):
        torch.manual_seed(0)
        recipe, self.device = recipe_of(name, sizes), device
        batch, pixels = recipe.train.batch_size, recipe.augment.size
        labels = torch.arange(sizes.images) % 1000
        self.method = (
            import_module(f"pretrain.{name}")
            .build(recipe, labels, 1000, 0)
            .to(device, memory_format=layout)
            .train()
        )
        rng = np.random.default_rng(0)
        if name == "pcl":
            self.method.prototypes = [
                (
                    F.normalize(torch.randn(k, recipe.dim), dim=1).to(device),
                    torch.full((k,), 0.2, device=device),
                    torch.from_numpy(rng.integers(0, k, sizes.images)).to(device),
                )
                for k in sizes.prototypes
            ]
        if name == "spcl":
            groups = rng.integers(0, recipe.num_prototypes[0], sizes.images)
            self.method.groups, self.method.prototypes = (
                groups,
                [torch.from_numpy(groups).to(device)],
            )
        chosen = self.method.draw_batches(0, 1)[0] if name == "spcl" else np.arange(batch)
        self.index = torch.from_numpy(chosen).to(device)
        self.views = [
            # drawn on the CPU: a GPU has other random numbers
            torch.randn(batch, 3, pixels, pixels).to(device).contiguous(memory_format=layout)
            for _ in range(2)
        ]
        if compiled:
            loop.compile_networks(self.method)
        self.optimizer, self.precision = (
            optim.optimizer(recipe.train, self.method, self.method.unscheduled()),
            precision,
        )

    def __call__(self) -> None:
        """Takes one step."""
        with arithmetic(self.precision, self.device, fixed_shapes=True):
            self.value = loop.update(
                self.method.loss, self.optimizer, self.views, self.index, self.precision
            )


def steps(sizes: Sizes, device: str) -> Iterator[Ratio | Figure]:
    """Compares, for each method, the published step with ours in each precision. Only MoCo is
    compiled, too: the network is the same in all and takes a minute to compile. What does not fit
    on this GPU, as computed, is not run."""
    known: tuple[Precision, ...] = ("bf16", "tf32", "fp32") if device != "cpu" else ("bf16", "fp32")
    yield Figure(
        f"matrix products of random numbers in {', '.join(known)}, TFLOP/s; a copy, TB/s",
        ", ".join(f"{flops(precision, device) / 1e12:.0f}" for precision in known)
        + f"; {bandwidth(device) / 1e12:.2f}",
    )
    gib = devices.memory_gib(device) if device != "cpu" else float("inf")
    eager: Precision = known[1]
    for name in RECIPES:
        recipe = recipe_of(name, sizes)
        images = recipe.train.batch_size
        about = f"a step of {name}, {recipe.arch}, {images} images"
        plain = None
        if gpu_memory.fits(_in(recipe, eager), 1, gib):
            plain = Step(name, sizes, device, eager, torch.contiguous_format, compiled=False)
            for _ in range(2):
                plain()
        ways = [(precision, False) for precision in known[::-1]]
        for precision, compiled in [*ways, *([("bf16", True)] if name == "moco" else [])]:
            title = f"{about}: {precision}, channels last{', compiled' if compiled else ''}"
            needed = gpu_memory.peak_gib(_in(recipe, precision))
            if not gpu_memory.fits(_in(recipe, precision), 1, gib):
                yield Figure(title, f"not run: needs {needed:.0f} GiB (computed)")
                continue
            peak_memory(device)
            step = Step(name, sizes, device, precision, torch.channels_last, compiled)
            for _ in range(3):
                step()
            memory, waits = peak_memory(device), _waits(step, device)

            def ours(step=step) -> float:
                return spent(lambda: [step() for _ in range(sizes.steps)], device)

            least = limit(recipe, images, precision, device)
            if plain is None:
                b = statistics.median(ours() for _ in range(3)) / sizes.steps
                told = f"{1e3 * b:.0f} ms, {images / b:.0f} images/s{memory}"
                yield Figure(title, f"{told}; {waits}", f"at least {1e3 * least:.0f} ms")
            else:
                times = alternate(
                    lambda plain=plain: spent(
                        lambda: [plain() for _ in range(sizes.steps)], device
                    ),
                    ours,
                    3,
                    clock=time.perf_counter,
                )
                pairs = sorted(a / b for a, b in zip(*times, strict=True))
                a, b = (statistics.median(way) / sizes.steps for way in times)
                yield Ratio(
                    title,
                    a,
                    b,
                    (statistics.median(pairs), pairs[0], pairs[-1]),
                    f"{images / b:.0f} images/s{memory}, {needed:.1f} computed; {waits}",
                    limit=least,
                )
            if not compiled:
                MEASURED[f"{name} {precision}"] = b
            del step
        del plain
        gc.collect()


def _in(recipe: common.Recipe, precision: Precision) -> common.Recipe:
    return replace(recipe, train=replace(recipe.train, precision=precision))


def precisions(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Compares the first loss of every method, on 16 images, with that of a CPU: in IEEE fp32 it
    must agree, and what TF32 and bf16 change is told. Nothing in it is drawn on the device."""
    few = replace(TINY, pixels=sizes.pixels, arch=sizes.arch, negatives=max(TINY.prototypes))
    known: tuple[Precision, ...] = ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16")
    for name in RECIPES:
        losses = []
        for where, precision in [("cpu", "fp32"), *((device, one) for one in known)]:
            step = Step(name, few, where, precision, torch.channels_last, compiled=False)
            step()
            losses.append(float(step.value))
        exact, *found = losses
        told = ", ".join(
            f"{precision} {abs(loss / exact - 1):.1e}"
            for precision, loss in zip(known, found, strict=True)
        )
        yield Figure(
            f"the first loss of {name}, {few.arch}, {few.batch} images, relative to the CPU's",
            told,
            "fp32 within 1e-4",
        )


def epoch(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Compares an epoch of PCL with one of MoCo, computed from the steps and the clusterings
    measured before and the features measured here."""
    title = "an epoch of PCL in bf16, E-step included, relative to MoCo, computed"
    needed = ("moco bf16", "pcl bf16", *map(str, sizes.prototypes))
    if missing := [name for name in needed if name not in MEASURED]:
        yield Figure(title, f"not computed, no time measured of: {', '.join(missing)}")
        return
    network = Step(
        "moco", sizes, device, "bf16", torch.channels_last, compiled=False
    ).method.encoder_k.eval()
    pixels = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, device=device).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def forward() -> None:
        with autocast("bf16", device):
            network(pixels)

    forward()
    features = (
        spent(lambda: [forward() for _ in range(sizes.steps)], device)
        / sizes.steps
        / sizes.batch
        * sizes.images
    )
    moco, pcl = (sizes.images // sizes.batch * MEASURED[name] for name in needed[:2])
    clustering = sum(MEASURED[str(k)] for k in sizes.prototypes)
    one, five = ((pcl + features + nredo * clustering) / moco for nredo in (1, 5))
    yield Figure(
        title,
        f"{one:.2f}× with one start of k-means, {five:.2f}× with the released five: MoCo {moco:.0f}"
        f" s, PCL's steps {pcl:.0f} s, features {features:.0f} s, k-means {clustering:.1f} s a"
        " start; without loading images, φ and copies to the host",
        "{:.2f}× (one start {:.2f}×) at an H100's limits".format(*AT_AN_H100_S_LIMITS["bf16"]),
    )


def _waits(step: Step, device: str) -> str:
    """Reports whether CUDA sees the host wait in a step."""
    if device == "cpu":
        return "waiting not checked"
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as failure:
        return f"**the host waits**: {str(failure).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "the host never waits"


# k-means ------------------------------------------------------------------------------------------


def _clustered(sizes: Sizes, device: str) -> tuple[np.ndarray, torch.Tensor]:
    """Returns unit vectors around 20 000 directions, on the host and on the device."""
    generator = torch.Generator(device).manual_seed(0)
    centre = torch.randn(min(20_000, sizes.images // 10), 128, device=device, generator=generator)
    x = torch.randn(sizes.images, 128, device=device, generator=generator) * 1.2
    x = F.normalize(x + centre[torch.arange(sizes.images, device=device) % len(centre)], dim=1)
    return x.cpu().numpy(), x


def _inertia(x: torch.Tensor, centroid_KC: torch.Tensor) -> float:
    """Returns the sum of squared distances to the nearest centroid, in fp32."""
    norm_K = centroid_KC.square().sum(1)
    least = [
        (norm_K - 2 * part @ centroid_KC.T).min(1).values + part.square().sum(1)
        for part in x.split(2**14)
    ]
    return float(torch.cat(least).double().sum())


def clusterings(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Times twenty iterations at each K by every library that is installed."""
    host, x = _clustered(sizes, device)
    fp32 = flops("fp32", device)

    def by_faiss(k: int, iterations: int) -> torch.Tensor:
        found = kmeans(host, k, seed=0, niter=iterations, nredo=1, gpu=device != "cpu")
        return torch.from_numpy(found.centroids).to(device)

    def by_fastkmeans(k: int, iterations: int) -> torch.Tensor:
        search = import_module("fastkmeans").FastKMeans(
            128, k, niter=iterations, tol=0.0, device=device, seed=0
        )
        search.train(host)
        search.predict(host)
        return torch.as_tensor(search.centroids, device=device, dtype=torch.float32)

    def by_flash_kmeans(k: int, iterations: int) -> torch.Tensor:
        _, centroid, *_ = import_module("flash_kmeans").batch_kmeans_Euclid(
            x[None], k, max_iters=iterations
        )
        return centroid[0].float()

    for k in sizes.prototypes:
        first = None
        limit = 21 * 2 * sizes.images * k * 128 / fp32
        for library, cluster in (
            ("faiss", by_faiss),
            ("fastkmeans", by_fastkmeans),
            ("flash_kmeans", by_flash_kmeans),
        ):
            if not find_spec(library):
                yield Figure(f"k-means by {library}, K = {k}", "not installed")
                continue
            found: list[torch.Tensor] = []
            try:
                if library != "faiss":  # kernels are compiled, and tuned to the sizes
                    cluster(k, 1)
                peak_memory(device)
                seconds = spent(
                    lambda cluster=cluster, found=found, k=k: found.append(cluster(k, 20)), device
                )
            except Exception as failure:  # a library that fails becomes a row; the others still run
                yield Figure(
                    f"k-means by {library}, K = {k}",
                    f"failed: {type(failure).__name__}: {str(failure)[:120]}",
                )
                continue
            # torch does not see the memory that faiss takes
            memory = "" if library == "faiss" else peak_memory(device)
            if library == "faiss":
                MEASURED[str(k)] = seconds
            inertia = _inertia(x, found[0])
            first = first or inertia
            yield Figure(
                f"k-means by {library}, N = {sizes.images}, K = {k}, 20 iterations",
                f"{seconds:.2f} s{memory}, {seconds / limit:.1f} times the fp32 limit; inertia "
                f"{100 * (inertia / first - 1):+.3f} % of the first's",
                "≤ 2.5 times, within 0.1 %",
            )


# The rest -----------------------------------------------------------------------------------------


def neighbours(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Times ImageNet's kNN from features in the host's memory."""
    bank, labels = np.empty((sizes.images, sizes.width), np.float32), np.arange(sizes.images) % 1000
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, sizes.images, 2**16):
        part = bank[start : start + 2**16]
        part[:] = torch.randn(part.shape, device=device, generator=generator).cpu().numpy()
    query = bank[np.linspace(0, sizes.images - 1, sizes.queries).astype(int)]
    peak_memory(device)
    truth = np.zeros(len(query), np.int64)
    seconds = spent(
        lambda: knn.score(bank, labels, query, truth, (20, 200), 0.07, device=device), device
    )
    memory = peak_memory(device)
    least = 2 * sizes.queries * sizes.images * sizes.width / flops("fp32", device)
    yield Figure(
        f"kNN, {sizes.queries} queries, bank {sizes.images} × {sizes.width}, k = 200",
        f"{seconds:.1f} s{memory}; fp32 limit {least:.1f} s",
        "≤ 15 s",
    )


def views(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Times two views of a batch: whole (mini tier and CIFAR), and the colours of the raw
    profile."""
    recipe = replace(moco_recipes.V2_AUGMENT, size=sizes.pixels)
    pictures = torch.randint(
        0,
        256,
        (sizes.batch, 3, sizes.pixels + 32, sizes.pixels + 32),
        dtype=torch.uint8,
        device=device,
    )
    crops = pictures[:, :, : sizes.pixels, : sizes.pixels]
    index = np.arange(sizes.batch)
    for title, make, of in (
        ("crop, colour, blur", tensor.render, pictures),
        ("colour and blur of crops (raw profile)", tensor.recolour, crops),
    ):

        def both(make=make, of=of) -> None:
            for view in range(2):
                make(recipe, of, tensor.draw(recipe, device, index, 0, view))

        both()
        peak_memory(device)
        times = [spent(both, device) for _ in range(7)]
        yield Figure(
            f"two views of {sizes.batch} images of {sizes.pixels} pixels: {title}",
            f"{middle(sizes.batch / seconds for seconds in times)} images/s{peak_memory(device)}",
        )


def detectors(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Times a training step of Faster R-CNN, where MMDetection is installed."""
    if not find_spec("mmdet") or sizes is TINY:
        yield Figure(
            "a training step of Faster R-CNN R50-FPN",
            "not run: MMDetection is not installed, or tiny sizes",
        )
        return
    detection = import_module("detection")
    batch = [detection.scene(1000, 600, key) for key in range(8)]
    ways = {
        "torchvision's own, fp32": detection.torchvisions(batch, device),
        "ours, fp32": detection.ours(batch, device),
        "ours, backbone in bf16": detection.ours(batch, device, "bf16"),
    }
    for title, step in ways.items():
        for _ in range(3):
            step()
        peak_memory(device)
        times = [spent(step, device) for _ in range(10)]
        yield Figure(
            f"a step of Faster R-CNN R50-FPN on 8 images of 1000 × 600: {title}",
            f"{middle(8 / seconds for seconds in times)} images/s{peak_memory(device)}",
        )


STAGES: dict[str, Callable[[Sizes, str], Iterator[Ratio | Figure]]] = {
    "precision": precisions,
    "steps": steps,
    "kmeans": clusterings,
    "epoch": epoch,
    "knn": neighbours,
    "views": views,
    "detection": detectors,
}


def _guarded(name: str, sizes: Sizes, device: str, elapsed: float) -> Iterator[Ratio | Figure]:
    """Yields the rows of a stage; one that fails ends with a row that says so."""
    if elapsed > DEADLINE:
        yield Figure(name, f"left out after {elapsed / 60:.1f} minutes; --only {name} runs it")
        return
    try:
        yield from STAGES[name](sizes, device)
    except Exception as failure:  # a missing compiler or too little memory: the others still run
        yield Figure(
            name, f"**failed**: {type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="use sizes that a CPU can try")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        help="some of the stages; nothing is written",
    )
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --device cpu --tiny tries the code")
    if chosen.device == "cpu" and not chosen.tiny:
        parser.error("ImageNet's sizes would take a CPU days; --tiny tries the code")
    sizes, started = TINY if chosen.tiny else Sizes(), time.monotonic()
    rows: list[Ratio | Figure] = []
    for name in chosen.only:
        elapsed = time.monotonic() - started
        print(f"[{elapsed / 60:.1f} min] {name}", flush=True)
        for row in _guarded(name, sizes, chosen.device, elapsed):
            rows.append(row)
            print("  " + " | ".join(cell for cell in row.cells() if cell), flush=True)
        gc.collect()
        if chosen.device != "cpu":
            torch.cuda.empty_cache()  # faiss needs memory beside torch's
    if chosen.device == "cuda" and not chosen.tiny and chosen.only == list(STAGES):
        path = RESULTS / f"benchmarks-{torch.cuda.get_device_name().replace(' ', '-')}.md"
        about = [
            f"`python benchmarks/gpu.py` writes this file. {machine()}"
            f" {(time.monotonic() - started) / 60:.1f} minutes."
        ]
        files.write_text(path, page("Speed on a GPU", rows, about))
        print(path)
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
