"""Measures how cost grows with images, prototypes, negatives, batch and processes, and extrapolates
it to ImageNet.

Each stage is timed at sizes that double along one axis while the others are fixed. Its law is a
power of the size, fitted to the three largest sizes below ImageNet's. "Computed" extrapolates the
law from the largest of them, "measured" was run, and "limit" is what the arithmetic, or the bytes
read and written, take on this machine at best. A fixed cost makes the exponent smaller than it is
at large sizes: a distant extrapolation is then too low, and the linear one beside it too high. The
C library returns large blocks to the system and requests them again (glibc: all above 32 MB), and
their pages are cleared each time; the laws of losses bend upwards there, and the system's share of
the time is given. Draws growth.png."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from alternate import Figure, peak_bytes, peak_flops, show
from ami import partitions

from evaluate import knn
from evaluate.svm.average_precision import average_precision
from pretrain.moco import info_nce
from pretrain.pcl import concentration, draw_negatives, proto_nce
from pretrain.recipes import moco, pcl, spcl
from pretrain.simclr import nt_xent
from protobench.features import unit_norm
from protobench.kmeans import kmeans
from protobench.mutual_information import agreement
from protobench.runtime import distributed
from tables.engine.pages import pictures

PICTURE, COMPUTED = Path(__file__).with_suffix(".png"), "#d55e00"
IMAGES, QUERIES, D, BATCH = 1_281_167, 50_000, pcl.V1.dim, pcl.V1.train.batch_size
QUEUE, R, KS = moco.V1.queue, pcl.V1.num_negatives, pcl.V1.num_prototypes
FITTED = 3
Work = Callable[[], object]


@dataclass(frozen=True)
class Law:
    """Seconds of CPU time over sizes."""

    stage: str
    axis: str
    """symbol of the axis and, in brackets, what it counts"""
    seconds: dict[int, float]
    """measured seconds by size, in ascending order; with the target's where it is affordable"""
    system: float
    """the system's share of the CPU time at the largest size"""
    target: int
    """ImageNet's size; for NT-Xent, SimCLR's largest batch"""
    limit: float
    """seconds at the target"""

    @property
    def fitted(self) -> list[int]:
        """The sizes to which the exponent is fitted."""
        return [size for size in self.seconds if size < self.target][-FITTED:]

    @property
    def exponent(self) -> float:
        """The slope of log time over log size, by least squares."""
        return float(
            np.polyfit(
                np.log(self.fitted), np.log([self.seconds[size] for size in self.fitted]), 1
            )[0]
        )

    def at(self, size: int, exponent: float | None = None) -> float:
        """Extrapolates the seconds of the largest fitted size to ``size``."""
        return self.seconds[self.fitted[-1]] * (size / self.fitted[-1]) ** (
            self.exponent if exponent is None else exponent
        )

    @property
    def power(self) -> str:
        """The law as text, such as N^1.02."""
        return f"{self.axis.split()[0]}^{self.exponent:.2f}"

    def row(self) -> Figure:
        """Returns the row of the page."""
        beside = f" ({_span(self.at(self.target, 1))} if linear)"
        if self.target in self.seconds:
            beside = f", {_span(self.seconds[self.target])} measured"
        system = f", {100 * self.system:.0f} % of it the system's" if self.system >= 0.1 else ""
        return Figure(
            f"growth: {self.stage}, with {self.axis}",
            f"{self.power} over {_short(self.fitted[0])}–{_short(self.fitted[-1])}; at"
            f" {_short(self.target)}: {_span(self.at(self.target))} computed{beside}{system}, limit"
            f" {_span(self.limit)}",
        )


def law(
    stage: str,
    axis: str,
    largest: int,
    count: int,
    target: int,
    work: Callable[[int], Work],
    *,
    flops: float = 0,
    bytes_moved: float = 0,
    check: bool = True,
    repeats: int = 3,
    parts: int = 1,
) -> Law:
    """Times ``work(size)()`` at ``count`` sizes in turn, so that changes of the machine's speed
    affect all of them; with ``check`` at the target, too.

    ``flops`` and ``bytes_moved`` are those of the target. The work consists of ``parts`` equal
    parts; the law is that of one."""
    sizes = [largest >> i for i in reversed(range(count))] + [target] * check
    ready = [work(size) for size in sizes]
    for call in ready:
        call()
    spent: list[list[tuple[float, float]]] = [[] for _ in sizes]
    for _ in range(repeats):
        for call, times in zip(ready, spent, strict=True):
            before = resource.getrusage(resource.RUSAGE_SELF)
            call()
            after = resource.getrusage(resource.RUSAGE_SELF)
            times.append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
    medians = [statistics.median(map(sum, times)) / parts for times in spent]
    user, system = np.sum(spent[-1], 0)
    return Law(
        stage,
        axis,
        dict(zip(sizes, medians, strict=True)),
        float(system / (user + system)),
        target,
        max(flops / peak_flops(), bytes_moved / peak_bytes()),
    )


def clustering() -> Iterator[Law | Figure]:
    """Yields k-means of unit vectors and, by both of its laws, PCL's E-step: the iterations of
    every start, and the assignment."""
    x, few, passes = (
        _unit(200_000).numpy(),
        spcl.IMAGENET.num_prototypes[0],
        pcl.V1.nredo * pcl.V1.niter + 1,
    )
    once = partial(kmeans, seed=0, niter=1, nredo=1)
    # the two parts are an iteration and the assignment, which cost the same
    how: dict[str, Any] = {"check": False, "repeats": 2, "parts": 2}
    with_n = law(
        f"k-means, a pass, K = {few}",
        "N (images)",
        len(x),
        5,
        IMAGES,
        lambda n: partial(once, x[:n], few),
        flops=2 * IMAGES * few * D,
        **how,
    )
    yield with_n
    with_k = law(
        "k-means, a pass, N = 30k",
        "K (prototypes)",
        8192,
        5,
        KS[0],
        lambda k: partial(once, x[:30_000], k),
        flops=2 * 30_000 * KS[0] * D,
        **how,
    )
    yield with_k
    for k in KS:
        yield _both(
            f"E-step of PCL, {passes} passes over 1.28M, K = {_short(k)}",
            with_n,
            with_k,
            few,
            k,
            passes,
        )


def densities() -> Iterator[Law]:
    """Yields the concentration φ of prototypes."""
    rng = np.random.default_rng(0)
    distance = rng.uniform(0.2, 1.2, IMAGES).astype(np.float32)

    def work(n: int, k: int) -> Work:
        return partial(concentration, distance[:n], rng.integers(0, k, n), k, temperature=0.1)

    how: dict[str, Any] = {"bytes_moved": 12 * IMAGES, "repeats": 9}
    yield law(
        "concentration φ, K = 25k",
        "N (images)",
        640_000,
        5,
        IMAGES,
        lambda n: work(n, KS[0]),
        **how,
    )
    yield law(
        "concentration φ, N = 1.28M",
        "K (prototypes)",
        50_000,
        4,
        KS[-1],
        lambda k: work(IMAGES, k),
        **how,
    )


def negatives() -> Iterator[Law]:
    """Yields the draw of negative prototypes for a step."""
    generator = torch.Generator().manual_seed(0)

    def work(k: int, r: int) -> Work:
        return partial(
            draw_negatives, torch.randint(0, k, (BATCH,), generator=generator), k, r, generator
        )

    few = R // 4  # fewer than the smallest K
    yield law(
        f"negative prototypes, r = {_short(few)}",
        "K (prototypes)",
        50_000,
        4,
        KS[-1],
        lambda k: work(k, few),
        bytes_moved=5 * KS[-1] + 8 * few,
        repeats=31,
    )
    yield law(
        "negative prototypes, K = 100k",
        "r (negatives)",
        R // 2,
        4,
        R,
        lambda r: work(KS[-1], r),
        bytes_moved=5 * KS[-1] + 8 * R,
        repeats=31,
    )


def losses() -> Iterator[Law]:
    """Yields the losses: forward, and backward to the embeddings of a batch."""
    prototypes, phi, queue = _unit(KS[0]), torch.full((KS[0],), 0.1), _unit(QUEUE)

    def step(batch: int, loss: Callable[..., torch.Tensor], *others: torch.Tensor) -> Work:
        q = _unit(batch).requires_grad_()
        return lambda: torch.autograd.grad(loss(q, *others), q)

    def proto(batch: int, r: int) -> Work:
        drawn = torch.randperm(KS[0], generator=torch.Generator().manual_seed(0))
        return step(batch, proto_nce, prototypes, phi, drawn[:batch], drawn[batch : batch + r])

    def info(batch: int, keys: int) -> Work:
        return step(
            batch, lambda q, key, old: info_nce(q, key, old, 0.07), _unit(batch), queue[:keys]
        )

    flops = 4 * BATCH * (BATCH + R) * D
    yield law(
        "ProtoNCE and gradient, r = 16.4k",
        "batch (images)",
        BATCH // 2,
        5,
        BATCH,
        lambda n: proto(n, R),
        flops=flops,
    )
    yield law(
        f"ProtoNCE and gradient, batch {BATCH}",
        "r (negatives)",
        R // 2,
        5,
        R,
        lambda r: proto(BATCH, r),
        flops=flops,
    )
    flops = 4 * BATCH * QUEUE * D
    yield law(
        f"InfoNCE and gradient, batch {BATCH}",
        "queue (keys)",
        QUEUE // 2,
        5,
        QUEUE,
        lambda k: info(BATCH, k),
        flops=flops,
    )
    yield law(
        "InfoNCE and gradient, queue 65.5k",
        "batch (images)",
        BATCH // 2,
        5,
        BATCH,
        lambda n: info(n, QUEUE),
        flops=flops,
    )
    yield law(
        "NT-Xent and gradient",
        "batch (images)",
        2048,
        5,
        4096,
        lambda n: step(2 * n, lambda z: nt_xent(*z.chunk(2), temperature=0.1)),
        flops=4 * (2 * 4096) ** 2 * D,
        repeats=3,
    )


def neighbours() -> Iterator[Law | Figure]:
    """Yields kNN of embeddings, in one process and in two."""
    x, few, part = _unit(IMAGES).numpy(), knn.QUERIES, knn.BANK
    labels = np.random.default_rng(0).integers(0, 1000, len(x))

    def work(n: int, m: int) -> Work:
        return partial(knn.score, x[:n], labels[:n], x[:m], labels[:m], (200,), 0.1)

    with_n = law(
        f"kNN, {few} queries",
        "N (bank)",
        256_000,
        5,
        IMAGES,
        lambda n: work(n, few),
        flops=2 * few * IMAGES * D,
        check=False,
        repeats=2,
    )
    yield with_n
    with_m = law(
        f"kNN, bank {_short(part)}",
        "M (queries)",
        8 * few,
        5,
        QUERIES,
        lambda m: work(part, m),
        flops=2 * part * QUERIES * D,
        check=False,
        repeats=2,
    )
    yield with_m
    yield _both("kNN, 50k queries, bank 1.28M", with_n, with_m, few, QUERIES, 1)
    seconds = []
    for processes in (1, 2):
        how = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
        done = subprocess.run(
            [*how, __file__, "--worker"], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds.append(statistics.median(map(float, done.stdout.split())))
    yield Figure(
        "growth: kNN, 1536 queries, bank 128k, with processes of one thread each, wall",
        f"1: {_span(seconds[0])}, 2: {_span(seconds[1])}, {seconds[0] / seconds[1]:.2f}× as fast",
    )


def worker() -> None:
    """Runs as one of torchrun's ranks; each prints its seconds."""
    torch.set_num_threads(1)
    distributed.init("cpu")
    x, labels = _unit(128_000).numpy(), np.arange(128_000) % 1000
    for again in range(4):
        started = time.perf_counter()
        knn.score(x, labels, x[:1536], labels[:1536], (200,), 0.1)
        if again:
            print(time.perf_counter() - started)
    distributed.shutdown()


def scores() -> Iterator[Law]:
    """Yields AMI against 1000 classes, and VOC's average precision."""
    clusters, classes = partitions(10_000)
    how: dict[str, Any] = {"bytes_moved": 16 * IMAGES, "repeats": 3}
    yield law(
        "AMI, K = 10k",
        "N (images)",
        640_000,
        5,
        IMAGES,
        lambda n: partial(agreement, clusters[:n], classes[:n]),
        **how,
    )
    yield law(
        "AMI, N = 1.28M",
        "K (clusters)",
        50_000,
        4,
        KS[-1],
        lambda k: partial(agreement, *partitions(k)),
        **how,
    )
    rng = np.random.default_rng(0)
    score, positive = rng.normal(size=(IMAGES, 20)), rng.random((IMAGES, 20)) < 0.07
    yield law(
        "average precision, 20 classes",
        "N (images)",
        4952 * 32,
        6,
        IMAGES,
        lambda n: partial(average_precision, score[:n], positive[:n]),
        bytes_moved=2 * score.nbytes,
        repeats=3,
    )


def gathering() -> Iterator[Figure]:
    """Yields the bytes that a rank receives of the others' shares, which are computed, not
    measured."""
    step, steps = 4 * BATCH * D, IMAGES // BATCH
    for what, size, parted in (
        ("features of an E-step, 1.28M × 128", 4 * IMAGES * D, True),
        ("keys of a step", step, True),
        (f"keys of an epoch, {steps} steps", step * steps, True),
        ("neighbours of 50k queries, k = 200", QUERIES * 200 * 12, False),
    ):  # every rank sends all k neighbours
        received = [size * (count - 1) / (count if parted else 1) for count in (1, 2, 4, 8)]
        yield Figure(
            f"growth: all-gathered {what}, with 1, 2, 4, 8 processes",
            ", ".join(f"{size / 1e6:.3g}" for size in received) + " MB received by each, computed",
        )


def rows() -> Iterator[Figure]:
    """Yields every law, then draws the picture."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    laws = []
    for stage in (clustering, densities, negatives, losses, neighbours, scores, gathering):
        for found in stage():
            if isinstance(found, Law):
                laws.append(found)
            yield found.row() if isinstance(found, Law) else found
    draw(laws, PICTURE)


def draw(laws: list[Law], path: Path) -> None:
    """Draws a panel per law; both axes are logarithmic, and the vertical one spans at least a
    decade."""
    from matplotlib import ticker

    down = -(-len(laws) // 4)
    picture, grid = pictures.axes(4, 12, 3 * down, down)
    for axes in grid.flat[len(laws) :]:
        axes.remove()
    for found, axes in zip(laws, grid.flat, strict=False):
        computed = found.at(found.target)
        scale, unit = (1, "s") if computed >= 1 else (1e3, "ms")
        line = [found.fitted[0], found.target]
        axes.loglog(
            found.seconds.keys(),
            [scale * value for value in found.seconds.values()],
            "o",
            ms=4,
            color=pictures.COLOURS[2],
            label="measured",
        )
        axes.loglog(
            line,
            [scale * found.at(size) for size in line],
            "--",
            color=pictures.COLOURS[0],
            lw=1,
            label="fitted law",
        )
        axes.loglog(
            found.target,
            scale * computed,
            "o",
            ms=10,
            mfc="none",
            mew=1.5,
            color=COMPUTED,
            label="full size, computed",
        )
        beside = (-9, 2 if found.exponent > 0.2 else -18)  # clear of the line
        axes.annotate(
            "computed",
            (found.target, scale * computed),
            beside,
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=COMPUTED,
        )
        title, fixed = (
            found.stage.rsplit(", ", 1) if ", " in found.stage else (found.stage, "two views")
        )
        axes.set(
            title=f"{title}\n{fixed}: {found.power}", xlabel=found.axis, ylabel=f"CPU time ({unit})"
        )
        sizes = [min(found.seconds), found.fitted[-1], found.target]
        axes.set_xticks(sizes, [_short(size) for size in sizes])
        low, high = (
            scale * min(*found.seconds.values(), computed) / 1.5,
            scale * max(*found.seconds.values(), computed) * 1.5,
        )
        wider = max(10 / (high / low), 1) ** 0.5
        axes.set_ylim(low / wider, high * wider)
        axes.yaxis.set_major_locator(
            ticker.LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,))
        )
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(ticker.NullLocator())
    grid[0, 0].legend(loc="lower right", fontsize=8, markerscale=0.7)
    picture.savefig(path, dpi=100, metadata={"Software": None})


def _both(what: str, a: Law, b: Law, fixed: int, size: int, times: int) -> Figure:
    """Extrapolates along two axes: law ``a`` to its target (or what was measured there), at
    ``fixed`` on the axis of ``b``, and from there by law ``b`` to ``size``."""
    more, known = size / fixed, a.seconds.get(a.target)
    by_laws, linear = (
        times * (known or a.at(a.target)) * more**b.exponent,
        times * (known or a.at(a.target, 1)) * more,
    )
    return Figure(
        f"growth: {what}",
        f"{_span(by_laws)} of a core computed by {b.power if known else f'{a.power} and {b.power}'}"
        f" ({_span(linear)} if linear), limit {_span(times * a.limit * more)}",
    )


def _unit(n: int) -> torch.Tensor:
    return torch.from_numpy(
        unit_norm(np.random.default_rng(n).standard_normal((n, D), dtype=np.float32))
    )


def _span(seconds: float) -> str:
    return next(
        f"{seconds / size:.3g} {unit}"
        for size, unit in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
        if seconds >= size or unit == "µs"
    )


def _short(n: int) -> str:
    return next(
        f"{n / size:.3g}{unit}" for size, unit in ((1e6, "M"), (1e3, "k"), (1, "")) if n >= size
    )


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["--worker"] else show(rows())
