"""The training loop of every method: steps, schedule, log, checkpoints. It knows no method.

A method is a module with ``num_views``, ``backbone``, ``loss(views, index) -> Tensor`` and, where
it needs them, ``start_epoch(epoch, extract) -> dict`` run before each epoch, ``draw_batches(epoch,
steps)`` for batches of its own choice (image numbers, [steps, batch]; else a permutation), and
``end_epoch() -> dict``; the dicts go to the log. ``renewed`` are the parameters that start_epoch
has drawn anew, ``unscheduled`` those that keep the peak rate. Where it has them, its ``projection``
head and its ``momentum_encoder`` (backbone, head) are exported too, for evaluations that use
embeddings. Its ``state_dict`` holds everything that it goes on from in the middle of an epoch,
clusters too.

Under torchrun the processes share each batch, and everything is as if one had done it: ``views``
are a process's share of the images of ``index``, gradients are averaged by DistributedDataParallel,
BatchNorm's statistics are those of the whole batch or, where the method has ``bn_groups``, of as
many groups of it, and ``extract`` gives features to the first process alone. What does not depend
on a share (queue, clusters, draws) all processes have alike, so the first one's state is
everybody's, and a run may go on with another number of processes.

A run folder holds ``log.jsonl`` (one line per epoch), ``checkpoint-*.pt`` (see saved.py; written
after each epoch, every ten minutes and when the run is told to stop; removed when done, milestones
excepted) and, when the run is finished, ``encoder.safetensors`` (checkpoints.export) and
``course.json`` (the log and the probes, see probe.py, with the run's key). Resuming is exact on the
CPU: order, views and draws are functions of (seed, epoch, image), the rest is in the checkpoint. On
a GPU the same holds up to the rounding of its kernels, whose order of summation is not fixed."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import monitor, optim, recipes
from pretrain.augment.loader import Views, open_views
from pretrain.precision import Precision, autocast
from pretrain.recipes import Recipe
from protobench import batch_norm, keyed, records
from protobench.checkpoints import encoders
from protobench.data.image_list import ImageList
from protobench.runtime import distributed, files
from protobench.runtime.errors import UserError
from protobench.runtime.periodic_saver import PeriodicSaver
from protobench.runtime.progress import progress
from protobench.runtime.run_state import RunState

SAVE_SECONDS = 600.0
"""How much of an epoch a kill can lose."""


def pretrain(
    recipe: Recipe,
    images: ImageList | None,
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    workers: int = 0,
    resume: bool = True,
    keep_every: int = 0,
) -> Path:
    """Trains ``recipe`` on ``images`` into the folder ``out`` and returns the path of the exported
    encoder.

    ``images`` may be None for a recipe without epochs. Continues from the folder's checkpoint if
    there is one and ``resume`` is set. ``keep_every`` so many epochs the checkpoint is kept for
    good (0: none is). Raises UserError if the folder belongs to another run or is in use, and if
    the loss is not finite (the last checkpoint stays)."""
    _check(recipe)
    encoder_path, key = out / "encoder.safetensors", recipes.run_key(recipe, images, seed)
    saved = RunState(
        out,
        "checkpoint",
        key,
        json.loads(files.canonical_json(recipes.identity(recipe, images, seed))),
    )
    with (
        files.exclusive_folder(out, "wait for it, or choose another --out")
        if distributed.is_main()
        else contextlib.nullcontext()
    ):
        if distributed.broadcast_from_main(partial(_finished, encoder_path, key, saved, resume)):
            return encoder_path
        torch.manual_seed(keyed.seed(seed, "init"))
        labels, num_classes = (
            (torch.from_numpy(images.labels), len(images.classes))
            if images
            else (torch.empty(0), 0)
        )
        method = import_module(f"pretrain.{recipe.method}").build(recipe, labels, num_classes, seed)
        method = method.to(device, memory_format=torch.channels_last)
        at = Position()
        if images and recipe.train.epochs:
            training = Training(
                recipe, method, open_views(recipe, images, seed, device, workers), saved, keep_every
            )
            training.resume()
            training.run(images.labels)
            at = training.at
        if distributed.is_main():
            if at.log:
                files.write_text(
                    out / "course.json",
                    json.dumps({"key": key, "epochs": at.log, "probes": at.probes}) + "\n",
                )
            encoders.export(
                encoder_path,
                method.backbone,
                projection=getattr(method, "projection", None),
                momentum=getattr(method, "momentum_encoder", None),
                key=key,
                input_=recipe.input,
                trained={
                    "method": recipe.method,
                    "recipe": asdict(recipe),
                    "seed": seed,
                    "data": images and images.fingerprint,
                    "unreadable": len(images.unreadable) if images else 0,
                    **({"processes": n} if (n := distributed.world_size()) > 1 else {}),
                    "seconds": round(sum(line["seconds"] for line in at.log), 1),
                    "processor": records.processor(),
                },
            )
            saved.clear()
        distributed.barrier()  # nobody is told of a file that is not there yet
    return encoder_path


def _finished(encoder_path: Path, key: str, saved: RunState, resume: bool) -> bool:
    """Whether the run folder holds this very run's encoder. Without ``resume`` what it holds is
    removed; UserError where it is another run's."""
    if not resume:
        encoder_path.unlink(missing_ok=True)
        saved.clear(milestones=True)
    if not encoder_path.exists():
        return False
    try:
        found = encoders.load(encoder_path).key
    except UserError as damage:
        print(f"training again, the encoder in the run folder cannot be used. {damage}")
        encoder_path.unlink()
        return False
    if found != key:
        raise UserError(
            "this folder holds the encoder of another run (other recipe, data or seed)",
            at=encoder_path.parent,
            hint="choose another --out, or --no-resume to train anew",
        )
    saved.clear()  # of a run that was killed before it could
    return True


@dataclass
class Position:
    """How far a run is. What its checkpoint holds beside the method and its optimiser."""

    log: list[dict] = field(default_factory=list)
    """a line per epoch done"""
    probes: list[dict] = field(default_factory=list)
    step: int = 0
    """steps done of the epoch under way"""
    begun: dict = field(default_factory=dict)
    """what the method's start_epoch said of it"""
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    """sum over its steps; read once an epoch, for a GPU would wait"""
    e_step_seconds: float = 0.0
    seconds: float = 0.0
    """of its steps"""


class Training:
    """A run under way."""

    def __init__(
        self,
        recipe: Recipe,
        method: Any,
        views: Views,
        saved: RunState | None = None,
        keep_every: int = 0,
    ):
        self.recipe, self.views, self.saved, self.keep_every = recipe, views, saved, keep_every
        self.device, self.steps = (
            next(method.parameters()).device,
            len(views) // recipe.train.batch_size,
        )
        self.at = Position()
        self.saver = PeriodicSaver(self._save, SAVE_SECONDS)
        groups, processes = getattr(method, "bn_groups", 1), distributed.world_size()
        if processes > 1:
            recipes.check_share(recipe, processes)
        self.method: Any = (
            batch_norm.synchronise(method) if processes > 1 and groups == 1 else method
        )
        if recipe.train.compile:
            compile_networks(self.method)
        self.optimizer = optim.optimizer(recipe.train, self.method)
        self.loss: Any = self.method.loss
        if (
            processes > 1
        ):  # the graph is static, but has parameters without gradient where a loss has no weight
            self.loss = distributed.data_parallel(_Loss(self.method), static_graph=True)
        self.statistics = (
            batch_norm.RunningStatistics(self.method, groups // processes)
            if processes > 1 < groups
            else None
        )

    # Epochs
    # -----------------------------------------------------------------------------------------------------------

    def run(self, labels: np.ndarray) -> None:
        """What is left of the epochs, with the probes that are due."""
        epochs = self.recipe.train.epochs
        done = len(self.at.log) * self.steps + self.at.step
        with progress(
            desc=self.recipe.method, unit=" steps", total=epochs * self.steps - done
        ) as bar:
            for epoch in range(len(self.at.log), epochs):
                if (
                    self.at.step == 0
                ):  # what is measured here is what was saved: a kill costs no more
                    self._probe(epoch, labels)
                self.epoch(bar.update)
        self._probe(epochs, labels)

    def epoch(self, tell: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        """The epoch under way, from where it stands; its line of the log. Told to stop, it saves
        and passes the signal on."""
        at, epoch = self.at, len(self.at.log)
        if at.step == 0:
            self._start(epoch)
        if self.statistics:
            self.statistics.start()
        self.method.train()
        draw_batches: Callable | None = getattr(self.method, "draw_batches", None)
        chosen = draw_batches(epoch, self.steps) if draw_batches else self.views.order(epoch)
        started, rate = time.perf_counter() - at.seconds, 0.0
        with self.saver.deferring_signals():
            for views, index in self.views.batches(epoch, self.method.num_views, chosen, at.step):
                rate = optim.learning_rate(self.recipe.train, epoch, at.step, self.steps)
                optim.set_rate(self.optimizer, rate)
                at.loss = at.loss + update(
                    self.loss, self.optimizer, views, index, self.recipe.train.precision
                )
                if self.statistics:
                    self.statistics.merge()
                at.step += 1
                tell()
                at.seconds = time.perf_counter() - started
                if at.step < self.steps:
                    self.saver.after_step()
            self._end(epoch, rate)
            self.saver.save()
            self.saver.stop_if_requested()
        return at.log[-1]

    def _start(self, epoch: int) -> None:
        started = time.perf_counter()
        start_epoch: Callable | None = getattr(self.method, "start_epoch", None)
        begun = start_epoch(epoch, self.extract) if start_epoch else {}
        for parameter in getattr(self.method, "renewed", ()):
            self.optimizer.state.pop(parameter, None)  # the momentum of weights that are no more
        self.at.begun, self.at.e_step_seconds = begun, time.perf_counter() - started
        self.at.loss = torch.zeros((), device=self.device)

    def _end(self, epoch: int, rate: float) -> None:
        at = self.at
        mean = float(self._checked()) / self.steps
        end_epoch: Callable | None = getattr(self.method, "end_epoch", None)
        at.log.append(
            {
                "epoch": epoch,
                "loss": mean,
                "lr": rate,
                "seconds": round(at.e_step_seconds + at.seconds, 3),
                "e_step_seconds": round(at.e_step_seconds, 3),
                **at.begun,
                **(end_epoch() if end_epoch else {}),
            }
        )
        at.step, at.begun, at.seconds, at.e_step_seconds = 0, {}, 0.0, 0.0

    def _checked(self) -> Tensor:
        """The loss so far, over all processes; UserError where it is not finite."""
        self.at.loss = distributed.all_reduce_mean(self.at.loss)
        if not torch.isfinite(self.at.loss):
            raise UserError(
                f"{self.recipe.method}: the loss is not finite in epoch {len(self.at.log)}",
                hint="lower --lr; the last checkpoint is kept",
            )
        return self.at.loss

    def _probe(self, done: int, labels: np.ndarray) -> None:
        """A probe where it is due. One that cannot be taken is told, and does not stop the
        training."""
        taken = [line["epochs"] for line in self.at.probes]
        if (
            not monitor.due(done, self.recipe.train.epochs)
            or done in taken
            or not monitor.embeds(self.method)
        ):
            return
        started, x_IC = time.perf_counter(), self.extract(monitor.embedding(self.method))
        found: dict[str, Any] = {"epochs": done}
        if distributed.is_main():  # the others need not know
            try:
                found = monitor.probe(x_IC, labels, done, device=str(self.device))
            except UserError as mistake:
                print(f"no probe after {done} epochs. {mistake}")
                return
        self.at.probes.append({**found, "seconds": round(time.perf_counter() - started, 3)})

    @torch.inference_mode()
    def extract(
        self, module: nn.Module, epoch: int | None = None, dtype: type = np.float32
    ) -> np.ndarray:
        """[I, C]: the module's output in eval mode for all images, in order; on their centre crops
        or, of an ``epoch``, on one random view of each. Written row by row into the array returned,
        so nothing is held twice. Of several processes each takes whole parts of the images, so that
        features do not depend on their number, and the first gets all; the others [0, 0]."""
        was_training = module.training
        module.eval()
        parts = self.views.parts()
        shares = [
            [parts[i] for i in distributed.shard(len(parts), rank)]
            for rank in range(distributed.world_size())
        ]
        mine = shares[distributed.rank()]
        inputs = (
            self.views.centre_crops(mine) if epoch is None else self.views.one_view(epoch, mine)
        )
        found: np.ndarray = np.empty((0, 0), dtype)
        for now in zip_longest(*shares, fillvalue=parts[0][:0]):
            rows = distributed.gather_rows_to_main(
                self._output(module, next(inputs, None)), [len(part) for part in now]
            )
            if rows is not None:
                found = found if found.size else np.empty((len(self.views), rows.shape[1]), dtype)
                found[np.concatenate(now)] = rows.numpy()
        module.train(was_training)
        return found

    def _output(self, module: nn.Module, inputs: Tensor | None) -> Tensor | None:
        if inputs is None:
            return None
        with autocast(self.recipe.train.precision, inputs.device):
            return module(inputs).float().cpu()

    # Checkpoints
    # ------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Writes a checkpoint; every ``keep_every`` epochs it is a milestone. Raises UserError if
        the loss is not finite."""
        self._checked()
        epochs = len(self.at.log)
        milestone = self.at.step == 0 and self.keep_every and epochs % self.keep_every == 0
        if self.saved and distributed.is_main():
            self.saved.write(
                {
                    "position": vars(self.at),
                    "method": self.method.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                f"epoch{epochs}" if milestone else "",
            )
            files.write_text(
                self.saved.folder / "log.jsonl",
                "".join(json.dumps(line) + "\n" for line in self.at.log),
            )

    def resume(self) -> None:
        """Goes on from the newest checkpoint, where there is one."""
        state = distributed.broadcast_from_main(self.saved.read) if self.saved else None
        if state:
            self.at = Position(**state["position"])
            self.at.loss = self.at.loss.to(self.device)
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])


class _Loss(nn.Module):
    """A method's loss as a forward pass, which DistributedDataParallel asks for."""

    def __init__(self, method: Any):
        super().__init__()
        self.method = method

    def forward(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        return self.method.loss(views, index_N)


def update(
    loss: Callable[[list[Tensor], Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    views: list[Tensor],
    index_N: Tensor,
    precision: Precision,
) -> Tensor:
    """One step on a method's ``loss``; its value, on the device. Nothing here waits for the
    device."""
    with autocast(precision, index_N.device):
        value = loss(views, index_N)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return value.detach()


def compile_networks(method: nn.Module) -> None:
    """torch.compile of every network of the method, in place: names and checkpoints stay as they
    are. UserError on a CPU without the compiler that it needs there."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if next(method.parameters()).device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            "--compile needs a C++ compiler on a CPU, and there is none",
            hint="install g++, or leave out --compile",
        )
    for network in method.children():
        if not isinstance(network, nn.ModuleList):  # whose members are called one by one
            network.compile()


def _check(recipe: Recipe) -> None:
    train = recipe.train
    if train.epochs < 0 or train.batch_size < 2:
        raise UserError(
            f"{train.epochs} epochs of batches of {train.batch_size}",
            hint="--epochs from 0, --batch-size from 2",
        )
    if not (
        0 < train.lr < float("inf")
        and 0 <= train.weight_decay < float("inf")
        and 0 <= train.sgd_momentum < float("inf")
    ):
        raise UserError(
            f"--lr {train.lr:g}, --weight-decay {train.weight_decay:g}, --sgd-momentum"
            f" {train.sgd_momentum:g}",
            hint="--lr is positive, the others are not negative, and all are finite",
        )
    augment = recipe.augment
    if not all(
        0 <= p <= 1 for p in (augment.flip, augment.jitter_p, augment.grayscale, augment.blur)
    ):
        raise UserError("--flip, --jitter-p, --grayscale and --blur are probabilities, from 0 to 1")
    if augment.size < 1 or not 0 < augment.min_area <= 1:
        raise UserError(
            f"views of --size {augment.size} from --min-area {augment.min_area}",
            hint="--size from 1, --min-area above 0 and at most 1",
        )
    if not all(0 <= x < float("inf") for x in augment.jitter) or augment.jitter[3] > 0.5:
        raise UserError(
            f"--jitter {augment.jitter}: brightness, contrast and saturation are from 0, hue is"
            " from 0 to 0.5"
        )
