"""What an evaluation is: a value that says how to read its data, how to score an encoder, and how
to report the result.

A file under ``evaluate/`` holds one protocol: a docstring with its sources and examples, a
``Config`` with its flags, a ``run`` function, a ``report`` function, and at the end
``EVALUATION = Evaluation(...)``. What all of them share stands here, once: the common flags,
loading the encoder and the data, the processes of a torchrun, the record, and the command line."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import numpy as np
import tyro

from protobench import records
from protobench.checkpoints import identity
from protobench.checkpoints.layouts import Copy, LoadOptions
from protobench.data.datasets import DATASETS
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.records import ModelInfo, Record, ResultKey, Run
from protobench.runtime import cli, cores, files
from protobench.runtime.errors import UserError
from protobench.runtime.notices import notice

if TYPE_CHECKING:  # these import torch, which --help must not wait for
    from protobench.checkpoints.encoders import Encoder
    from protobench.features import Pooling
    from protobench.runtime.run_state import RunState


MOST_GPUS = 64
"""How many are considered for one batch."""
ROOM = 1.2
"""How much more than the least memory a GPU had better have, for wider images, weights, workspaces
and fragments; an estimate, measured nowhere."""
CONVOLUTIONAL_MAP = "this protocol pools the last convolutional map to 2x2"
"""Why a protocol needs a ResNet."""


def home_world(ckpt: Path) -> int | None:
    """The bundled world of an encoder that this suite exported: the one it was trained in or, where
    it was not trained at all, the one with the number of its seed. None for any other file."""
    trained = identity.exported_as(ckpt).get("trained")
    if not isinstance(trained, dict):
        return None
    world = trained.get("world") if trained.get("data") else trained.get("seed")
    return world if isinstance(world, int) else None


def _banner(data: Mapping[str, Any]) -> list[str]:
    """What must be said of a score on these data."""
    if not data["embedded"]:
        return []
    world = f", WORLD {data['world']}" if "world" in data else ""
    return [
        f"BUNDLED SYNTHETIC DATA{world}: these numbers are not comparable with any paper's (--data"
        " reads the real data)"
    ]


@dataclass(frozen=True)
class EvalConfig:
    """The flags that all evaluations share."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to evaluate, in any layout that `python -m protobench layouts` lists"""
    data: Path | None = None
    """folder of the data set, or the folder that holds it under its usual name; without it the
    bundled synthetic data"""
    dataset: str = "imagenet"
    world: int | None = None
    """number of the bundled world, where no --data is given; default: the one that the encoder was
    trained in, or 1"""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:N"""
    workers: int | None = None
    """processes that read images, for each process under torchrun; default: the usable cores, which
    torchrun's processes share"""
    skip_bad_images: int = 0
    """leave out up to this many images that cannot be decoded; the record counts them, and its cell
    is off protocol"""
    results: Path = Path("results/scores")
    """folder of the record; an interrupted run also keeps its state there and resumes from it"""
    load_options: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """Return every parameter that determines the score of a given encoder on given images.

        Records are found by these, so a new parameter must be absent at its default."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise UserError for values that make no sense, before any work is done."""

    @property
    def needs_resnet(self) -> str:
        """Why only a ResNet can be evaluated so; empty if any encoder can."""
        return ""

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """The copies of the encoder to load (None: the one the layout evaluates). The first is the
        one the record describes, the last gives the record its key."""
        return (None,)


C = TypeVar("C", bound=EvalConfig)


def training_and_test(root: Path, dataset: str, skip_bad_images: int) -> tuple[ImageList, ...]:
    """Read the training and the test images of a data set."""
    return DATASETS[dataset].read_both(root, skip_bad_images)


def training_only(root: Path, dataset: str, skip_bad_images: int) -> tuple[ImageList, ...]:
    """Read the training images of a data set."""
    return (DATASETS[dataset].training_images(root, skip_bad_images),)


@dataclass(frozen=True)
class Metric:
    """What the value of a run is."""

    name: str
    unit: str
    test_images: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    runs: list[Run]
    """one dictionary per value, with at least ``draw`` and ``value``"""
    metric: Metric
    warnings: tuple[str, ...] = ()
    """what is doubtful about the values; empty strings are ignored"""
    data: Mapping[str, Any] = field(default_factory=dict)
    """further facts about the data"""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """further costs, beside ``seconds``; an evaluation that resumes gives the ``seconds`` itself"""
    details: Mapping[str, Any] = field(default_factory=dict)
    """further fields of the record"""


@dataclass(frozen=True)
class Wanted:
    """Features of the centre crops of some images, which an evaluation asks its context for."""

    images: ImageList
    pooling: "Pooling" = "average"
    copy: int = 0
    """which of the copies of the encoder that the configuration names"""
    warp: bool = False


@dataclass(frozen=True)
class Context:
    """What an evaluation is given: the encoder, the images, and where to compute."""

    encoders: tuple["Encoder", ...]
    """the copies that the configuration names"""
    lists: tuple[ImageList, ...]
    """training and test images, or the training images alone"""
    device: str
    workers: int
    state: "RunState"
    """where a long evaluation saves what it resumes from; cleared once the record is written"""
    started: float
    """``time.perf_counter`` at the start"""

    @property
    def encoder(self) -> "Encoder":
        """The encoder that is evaluated."""
        return self.encoders[0]

    @property
    def trained(self) -> bool:
        """Whether the encoder looks trained; a random one may score at chance."""
        return not self.encoder.report.untouched

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def features(
        self,
        images: ImageList,
        pooling: "Pooling" = "average",
        *,
        copy: int = 0,
        warp: bool = False,
    ) -> np.ndarray:
        """Return features [N, D] of centre crops, from the cache where they are known."""
        from protobench import features

        return features.extract(
            self.encoders[copy],
            images,
            pooling=pooling,
            warp=warp,
            device=self.device,
            workers=self.workers,
        )

    def all_features(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        """Return the same for all that is wanted, in this order."""
        return [
            self.features(one.images, one.pooling, copy=one.copy, warp=one.warp) for one in wanted
        ]


@dataclass(frozen=True)
class Evaluation(Generic[C]):
    """One evaluation. ``name`` is its file's name and part of every record's key."""

    name: str
    Config: type[C]
    run: Callable[[C, Context], Scores | None]
    """scores the encoder; called on every rank, and what the main process returns counts"""
    report: Callable[[Record], list[str]]
    """the record as lines for the terminal, the first of them a title"""
    doc: str
    """description and examples for --help"""
    version: int = 1
    """raise it when a score changes for equal weights, images and parameters"""
    read: Callable[[Path, str, int], tuple[ImageList, ...]] = training_and_test
    """folder, data set and number of bad images to skip -> the images that the evaluation needs"""
    wanted: Callable[[C, tuple[ImageList, ...]], Sequence[Wanted]] = lambda config, lists: ()
    """the features that ``run`` asks for, so that several evaluations can be given theirs in one
    pass over the images"""
    passes: Callable[[C, tuple[ImageList, ...]], int] = lambda config, lists: 0
    """how many images pass through the network beside those of ``wanted``; one that it is trained
    on counts three times"""
    least_gib: Callable[[C, int], float] = lambda config, gpus: 0.0
    """the GiB that a step of its training needs at least on each of so many GPUs, which share the
    batch; computed. 0 where any GPU will do"""
    minutes: Mapping[str, float] = field(default_factory=dict)
    """data set -> rough cost of one score on the real data, with one recent GPU and a local disk"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """data set -> cost on the bundled data, on one core of the reference machine; default 3"""
    bundled: Mapping[str, Any] = field(default_factory=dict)
    """flags -> their values in tables of the bundled data, where those are not the defaults"""
    root: Callable[[Path | None, int], Path] = lambda data, world: (
        data or bundled.ensure(world=world)
    )
    """the folder to read, given --data or None and the number of the bundled world"""
    summary: Callable[["Encoder"], str] = lambda encoder: encoder.summary()
    """how the encoder is introduced on the terminal"""
    fixed_shapes: bool = False
    """whether it trains on inputs of one shape, for which cuDNN may look for its fastest
    algorithms; features are extracted so in any case"""
    repeat: bool = True
    """whether to compute again what a record in the results folder already holds"""
    detector: bool = False
    """whether it trains detectors, on images with boxes"""
    plot: Callable[[Record, Path], None] = lambda record, path: None
    """draws what belongs beside the record"""

    def load_data(
        self,
        data: Path | None,
        dataset: str,
        skip_bad_images: int = 0,
        world: int | None = None,
    ) -> tuple[ImageList, ...]:
        """Return the lists of images; those of a bundled world, by default world 1, where ``data``
        is None. Raises UserError where they are missing, or where more than ``skip_bad_images`` are
        broken."""
        root = self.root(data, 1 if world is None else world)
        return self.read(root, dataset, skip_bad_images)

    def result_key(self, encoder_key: str, lists: tuple[ImageList, ...], config: C) -> ResultKey:
        """Return what the record of these scores is found by."""
        return ResultKey(
            self.name,
            config.dataset,
            self.version,
            encoder_key,
            tuple(images.fingerprint for images in lists),
            config.params(),
        )

    def gpus_needed(self, config: C, gib: float, room: float = ROOM) -> int | None:
        """Return the fewest GPUs of ``gib`` GiB that hold a step of its training, with ``room`` to
        spare; None where no number up to ``MOST_GPUS`` does."""
        numbers = range(1, MOST_GPUS + 1)
        return next((n for n in numbers if room * self.least_gib(config, n) <= gib), None)

    def check_memory(self, config: C, device: str, gpus: int = 1) -> None:
        """Raise UserError where ``device`` is a GPU, and a step cannot fit on ``gpus`` of its size;
        say so where it is close."""
        from protobench.runtime import devices

        needed, options = self.least_gib(config, gpus), config.load_options
        if not needed or not device.startswith("cuda"):
            return
        if ROOM * needed <= (gib := devices.memory_gib(device)):
            return
        half = replace(config, load_options=replace(options, precision="bf16"))
        ways = []
        if enough := self.gpus_needed(config, gib):
            ways.append(
                f"use {enough} GPUs (torchrun --nproc_per_node {enough}, reproduce --gpus all)"
            )
        if self.least_gib(half, gpus) <= gib:
            ways.append("--precision bf16 needs less; the record notes it")
        told = (
            f"{self.name} {config.dataset}: a batch in {options.precision}"
            f"{f' on {gpus} GPUs' if gpus > 1 else ''} needs at least {needed:.0f} GiB a GPU"
            f" (computed), and the GPU has {gib:.1f}"
        )
        hint = "; ".join(ways) or "take a GPU with more memory"
        if needed > gib:
            raise UserError(told, hint=hint)
        notice(f"warning: {told}: it may run out of memory; {hint}")

    def execute(self, config: C, model: ModelInfo | None = None) -> Path | None:
        """Score a checkpoint and return the path of the record; None on all ranks but the main one.

        ``model`` says whose encoder it is (a table's row and seed); by default the file's name.
        Raises UserError for bad flags, checkpoints and data."""
        from protobench.checkpoints import encoders
        from protobench.runtime import distributed, precision
        from protobench.runtime.devices import device_of
        from protobench.runtime.run_state import RunState

        if config.world is not None and config.data is not None:
            raise UserError(
                "--world is one of the bundled data", hint="leave out --data or --world"
            )
        config.check()
        workers = cores.workers(config.workers)
        started = time.perf_counter()
        device = distributed.init(device_of(config.device))
        copies = tuple(
            encoders.load(config.ckpt, config.load_options, prefer=copy) for copy in config.copies
        )
        if config.needs_resnet:
            copies[0].resnet(config.needs_resnet)
        print(self.summary(copies[0]))
        with distributed.main_process_first():
            world = home_world(config.ckpt) if config.world is None else config.world
            lists = self.load_data(config.data, config.dataset, config.skip_bad_images, world)
        key = self.result_key(copies[-1].key, lists, config)
        model = model or ModelInfo.of(config.ckpt)
        if not self.repeat:
            find = partial(records.find, config.results, key, model)
            if known := distributed.broadcast_from_main(find):
                print(f"done before (delete the record to repeat it): {known}")
                return known if distributed.is_main() else None
        self.check_memory(config, device, distributed.world_size())
        unit = files.sha256(
            [key.to_json(), [images.cache_key for images in lists], model.to_json()]
        )
        state = RunState(config.results, f".{self.name}-{unit[:12]}", unit)
        context = Context(copies, lists, device, workers, state, started)
        with precision.arithmetic(
            config.load_options.precision, device, fixed_shapes=self.fixed_shapes
        ):
            scores, computed_in = self.run(config, context), precision.in_force(device)
        if scores is None or not distributed.is_main():
            return None
        path = records.write(
            config.results,
            key,
            scores.runs,
            model=model,
            warnings=scores.warnings,
            metric=vars(scores.metric),
            checkpoint=copies[0].report.to_json(),
            data=records.data_of(config.dataset, lists, **scores.data),
            cost={"seconds": round(context.seconds, 2), **scores.cost},
            **scores.details,
            **computed_in,
        )
        state.clear()
        return path

    def main(self) -> int:
        """Run the command line: evaluate, print the report and the record's path."""
        config = cli.parse(self.Config, self.doc)

        from protobench.runtime import distributed

        records.require_writable(config.results)
        if path := self.execute(config):
            record = records.read(path)
            title, *lines = self.report(record)
            print("\n".join([title, *_banner(record["data"]), *lines]))
            for text in record.get("warnings", ()):
                notice(f"warning: {text}")
            print(f"record: {path}")
            self.plot(record, path)
        distributed.shutdown()
        return cli.SAME
