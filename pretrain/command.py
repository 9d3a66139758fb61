"""The command line that all methods share: a recipe by name, its fields as flags, and where and how
to run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pretrain.recipes.common import KEEP_EVERY, Recipe
from protobench.data.image_list import ImageList
from protobench.runtime import cli
from protobench.runtime.errors import UserError, choose


@dataclass(frozen=True)
class Run:
    """Where and how to run."""

    data: Path | None = None
    """folder with imagenet/train, or CIFAR's batches; default: the bundled synthetic data, the
    world with the number of the seed"""
    out: Path | None = None
    """run folder (log, checkpoint, encoder); default runs/<method>-<seed>"""
    seed: int = 0
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda"""
    workers: int | None = None
    """DataLoader processes, for each process under torchrun; default: the usable cores, shared by
    torchrun's processes. Unused where images are small enough to be held in memory"""
    threads: int = 1
    """torch threads on the CPU; one is fastest where several runs share a machine"""
    keep_crops: bool = False
    """keep the centre crops of the images decoded in the cache (ImageNet: 193 GB), from where every
    E-step and every evaluation with the same input reads them, to the same result"""
    skip_bad_images: int = 0
    """leave out up to this many images that cannot be decoded; the encoder records how many"""
    resume: bool = True
    """resume from the run folder's checkpoint"""
    keep_every: int = KEEP_EVERY
    """keep the checkpoint of every n-th epoch for good (milestones); 0 keeps none"""


def main(doc: str | None, recipes: Mapping[str, Recipe]) -> None:
    """Runs ``python pretrain/<method>.py RECIPE --flag value …`` and exits."""
    cli.run(lambda: _main(doc or "", recipes))


def _main(doc: str, recipes: Mapping[str, Recipe]) -> int:
    help_of = {name: f"{r.train.epochs} epochs of {r.arch}" for name, r in recipes.items()}
    subcommands: Any = tyro.extras.subcommand_type_from_defaults(
        dict(recipes), help_of, prefix_names=False
    )
    choice: Any = Annotated[subcommands, tyro.conf.arg(name="")]

    def job(recipe: choice, run: Run) -> tuple[Recipe, Run]:
        return recipe, run

    recipe, run = cli.parse(job, doc)
    encoder = train(recipe, run)
    print(f"{encoder}  (score it: python evaluate/lowshot.py --ckpt {encoder})")
    return cli.SAME


def train(recipe: Recipe, run: Run) -> Path:
    """Trains ``recipe`` as ``run`` says and returns the path of the exported encoder."""
    import torch

    from pretrain import loop
    from protobench.data import crop_cache
    from protobench.data.datasets import DATASETS
    from protobench.data.synthetic import bundled
    from protobench.runtime import cores, distributed
    from protobench.runtime.devices import device_of

    if run.threads < 1 or run.keep_every < 0:
        raise UserError("--threads is at least 1, --keep-every is not negative")
    workers = cores.workers(run.workers)
    device = distributed.init(device_of(run.device))
    torch.set_num_threads(run.threads)
    out = run.out or Path("runs") / f"{recipe.method}-{run.seed}"
    with distributed.main_process_first():
        dataset = DATASETS[choose("data set", recipe.dataset, tuple(DATASETS))]
        root = run.data or bundled.ensure(world=run.seed)
        images = dataset.training_images(root, run.skip_bad_images)
        if images.labels.ndim != 1:
            raise UserError(
                f"no method is trained on {recipe.dataset}, whose images have several labels",
                hint="choose a data set with one label per image, such as imagenet",
            )
        if run.keep_crops:
            crop_cache.keep(images, recipe.input)
    encoder = loop.pretrain(
        recipe,
        images,
        out,
        seed=run.seed,
        device=device,
        workers=workers,
        resume=run.resume,
        keep_every=run.keep_every,
    )
    if recipe.train.epochs and distributed.is_main():
        _record(encoder, images, recipe.dataset)
    distributed.shutdown()
    return encoder


def _record(encoder: Path, images: ImageList, dataset: str) -> None:
    """Write the records of the training into the run folder and print the monitors; nothing where
    the training was not monitored."""
    from pretrain import history
    from protobench import records

    if not history.is_monitored(encoder):
        return
    folder = encoder.parent / "records"
    for path in folder.glob("*.json"):  # of the same training, which has one history
        path.unlink()
    course = records.read(history.write("course", encoder, images, dataset, folder))
    print(history.report(course))
    if history.measures_similarity({"epochs": course["runs"]}):
        history.write("similarity", encoder, images, dataset, folder)
