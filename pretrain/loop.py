"""The training loop of every method: steps, schedule, log, checkpoints. It knows no method beyond
the hooks of ``Method``, whose dicts go to the log.

Under torchrun the processes share each batch, and the result is as if one process had done it all:
gradients are averaged by DistributedDataParallel, and BatchNorm's statistics are those of the
global batch or, where the recipe has ``batch_norm_groups``, of that many groups of it. Whatever
does not depend on a process's share (queue, clusters, random draws) is equal in all processes, so
the main process's state is everybody's, and a run may resume with another number of processes.

A run folder holds ``log.jsonl`` (one line per epoch), ``checkpoint-*.pt`` (see run_state.py;
written after each epoch, every ten minutes and when the run is told to stop; removed when the run
is finished, milestones excepted) and, when the run is finished, ``encoder.safetensors``
(checkpoints/encoders.py) and ``course.json`` (the log and the monitor's measurements, with the
run's key). On the CPU resuming is exact: order, views and draws are functions of (seed, epoch,
image), and the rest is in the checkpoint. On a GPU it is exact up to the rounding of kernels, whose
order of summation is not fixed."""

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
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import gpu_memory, monitor, optim
from pretrain.augment.loader import Views, open_views
from pretrain.method import Method
from pretrain.precision import autocast
from pretrain.recipes import common
from pretrain.recipes.common import Recipe
from pretrain.remaining import Remaining
from protobench import batch_norm, keyed, records
from protobench.checkpoints import encoders
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import devices, distributed, files
from protobench.runtime.errors import UserError
from protobench.runtime.periodic_saver import PeriodicSaver
from protobench.runtime.precision import Precision, arithmetic, in_force
from protobench.runtime.progress import progress
from protobench.runtime.run_state import RunState

SAVE_SECONDS = 600.0
"""How much of an epoch a kill can lose."""


class DivergedError(UserError):
    """The loss is not finite."""


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
    """Trains ``recipe`` on ``images`` in the run folder ``out`` and returns the path of the
    exported encoder.

    ``images`` may be None for a recipe without epochs. If ``resume`` is set, the run resumes from
    the folder's checkpoint where there is one. Every ``keep_every`` epochs the checkpoint is kept
    for good (0: none is). UserError if the folder belongs to another run or is in use, or if the
    GPU's memory is too small for the batch, DivergedError if the loss is not finite (the last
    checkpoint stays)."""
    common.check(recipe)
    encoder_path, key = out / "encoder.safetensors", common.run_key(recipe, images, seed)
    saved = RunState(
        out,
        "checkpoint",
        key,
        json.loads(files.canonical_json(common.identity(recipe, images, seed))),
    )
    with (
        files.exclusive_folder(out, "wait for it, or choose another --out")
        if distributed.is_main()
        else contextlib.nullcontext(),
        arithmetic(recipe.train.precision, device, fixed_shapes=True),
    ):
        if distributed.broadcast_from_main(partial(_finished, encoder_path, key, saved, resume)):
            return encoder_path
        if device.startswith("cuda"):
            gpu_memory.check(recipe, distributed.world_size(), devices.memory_gib(device))
        torch.manual_seed(keyed.seed(seed, "init"))
        method = build(recipe, images, seed).to(device).to(memory_format=torch.channels_last)
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
            networks = method.networks()
            encoders.export(
                encoder_path,
                networks.backbone,
                projection=networks.projection,
                momentum=networks.momentum,
                key=key,
                input_=recipe.input,
                trained={
                    "method": recipe.method,
                    "recipe": asdict(recipe),
                    "seed": seed,
                    "data": images and images.fingerprint,
                    "world": images and bundled.world_of(images.root),
                    **({"rehearsal": True} if images and images.rehearsed_of else {}),
                    "unreadable": len(images.unreadable) if images else 0,
                    **({"processes": n} if (n := distributed.world_size()) > 1 else {}),
                    "seconds": round(sum(line["seconds"] for line in at.log), 1),
                    "processor": records.processor(),
                    **({"gpu": name} if (name := devices.gpu_name(device)) else {}),
                    **in_force(device),
                },
            )
            saved.clear()
        distributed.barrier()  # no process returns the path of a file that is not there yet
    return encoder_path


def build(recipe: Recipe, images: ImageList | None, seed: int) -> Method:
    """The method that the recipe names, newly initialised."""
    labels, num_classes = torch.empty(0), 0
    if images:
        labels, num_classes = torch.from_numpy(images.labels), len(images.classes)
    module = import_module(f"pretrain.{recipe.method}")
    return cast(Method, module.build(recipe, labels, num_classes, seed))


def _finished(encoder_path: Path, key: str, saved: RunState, resume: bool) -> bool:
    """Whether the run folder already holds the encoder of this run. Without ``resume`` the folder's
    encoder and checkpoints are removed. UserError where the encoder is another run's."""
    if not resume:
        encoder_path.unlink(missing_ok=True)
        saved.clear(milestones=True)
    if not encoder_path.exists():
        return False
    try:
        existing_key = encoders.load(encoder_path).key
    except UserError as damage:
        print(f"training again, as the encoder in the run folder cannot be used. {damage}")
        encoder_path.unlink()
        return False
    if existing_key != key:
        raise UserError(
            "this folder holds the encoder of another run (other recipe, data or seed)",
            at=encoder_path.parent,
            hint="choose another --out, or --no-resume to train anew",
        )
    saved.clear()  # a run killed after its export leaves its checkpoints
    return True


@dataclass
class Position:
    """How far a run has come: what its checkpoint holds beside the method and its optimiser."""

    log: list[dict[str, Any]] = field(default_factory=list)
    """one line per finished epoch"""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """the monitor's measurements"""
    step: int = 0
    """finished steps of the current epoch"""
    begun: dict[str, float] = field(default_factory=dict)
    """what the method's ``start_epoch`` returned for the current epoch"""
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    """sum over the current epoch's steps; read once an epoch, because reading it synchronises"""
    e_step_seconds: float = 0.0
    seconds: float = 0.0
    """seconds spent on the current epoch's steps"""


class Training:
    """A run in progress."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        views: Views,
        saved: RunState | None = None,
        keep_every: int = 0,
    ):
        self.recipe, self.views, self.saved, self.keep_every = recipe, views, saved, keep_every
        self.device = next(method.parameters()).device
        self.steps = len(views) // recipe.train.batch_size
        self.at = Position()
        self.saver = PeriodicSaver(self._save, SAVE_SECONDS)
        groups, processes = recipe.batch_norm_groups, distributed.world_size()
        if processes > 1:
            common.check_share(recipe, processes)
        self.method = method
        if processes > 1 and groups == 1:
            self.method = cast(Method, batch_norm.synchronise(method, equal_shares=True))
        if recipe.train.compile:
            compile_networks(self.method)
        self.optimizer = optim.optimizer(recipe.train, self.method, self.method.unscheduled())
        self.loss: Callable[[list[Tensor], Tensor], Tensor] = self.method.loss
        if processes > 1:
            # the graph is static, but some parameters get no gradient where a loss has no weight
            self.loss = distributed.data_parallel(_Loss(self.method), static_graph=True)
        self.statistics = None
        if groups > 1 and processes > 1:
            self.statistics = batch_norm.RunningStatistics(self.method, groups // processes)

    # Epochs ---------------------------------------------------------------------------------------

    def run(self, labels: np.ndarray) -> None:
        """Trains the remaining epochs, and measures where the monitor is due."""
        epochs = self.recipe.train.epochs
        done = len(self.at.log) * self.steps + self.at.step
        left = Remaining(epochs, self.steps, partial(monitor.due, epochs=epochs))
        with progress(
            desc=self.recipe.method, unit=" steps", total=epochs * self.steps - done
        ) as bar:
            bar.estimate = left.seconds

            def after_step() -> None:
                left.after_step()
                bar.update()

            for epoch in range(len(self.at.log), epochs):
                if self.at.step == 0:  # right after a save, so that a kill costs no more than that
                    with (
                        left.measuring() if monitor.due(epoch, epochs) else contextlib.nullcontext()
                    ):
                        self._measure(epoch, labels)
                left.start_epoch(epoch, self.at.step)
                self.epoch(after_step)
        self._measure(epochs, labels)

    def epoch(self, after_step: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        """Finishes the current epoch from the current step, and returns its line of the log. When
        told to stop, it saves and passes the signal on."""
        at, epoch = self.at, len(self.at.log)
        if at.step == 0:
            self._start(epoch)
        if self.statistics:
            self.statistics.start()
        self.method.train()
        batches = self.method.draw_batches(epoch, self.steps)
        if batches is None:
            batches = self.views.order(epoch)
        started, rate = time.perf_counter() - at.seconds, 0.0
        with self.saver.deferring_signals():
            for views, index in self.views.batches(epoch, self.method.num_views, batches, at.step):
                rate = optim.learning_rate(self.recipe.train, epoch, at.step, self.steps)
                optim.set_rate(self.optimizer, rate)
                at.loss = at.loss + update(
                    self.loss, self.optimizer, views, index, self.recipe.train.precision
                )
                if self.statistics:
                    self.statistics.merge()
                at.step += 1
                after_step()
                at.seconds = time.perf_counter() - started
                if at.step < self.steps:
                    self.saver.after_step()
            self._end(epoch, rate)
            self.saver.save()
            self.saver.stop_if_requested()
        return at.log[-1]

    def _start(self, epoch: int) -> None:
        started = time.perf_counter()
        begun = self.method.start_epoch(epoch, self.extract)
        for parameter in self.method.renewed():
            self.optimizer.state.pop(parameter, None)  # momentum of weights that no longer exist
        self.at.begun, self.at.e_step_seconds = begun, time.perf_counter() - started
        self.at.loss = torch.zeros((), device=self.device)

    def _end(self, epoch: int, rate: float) -> None:
        at = self.at
        mean = float(self._finite_loss()) / self.steps
        at.log.append(
            {
                "epoch": epoch,
                "loss": mean,
                "lr": rate,
                "seconds": round(at.e_step_seconds + at.seconds, 3),
                "e_step_seconds": round(at.e_step_seconds, 3),
                **at.begun,
                **self.method.end_epoch(),
            }
        )
        at.step, at.begun, at.seconds, at.e_step_seconds = 0, {}, 0.0, 0.0

    def _finite_loss(self) -> Tensor:
        """The epoch's loss so far, over all processes. DivergedError where it is not finite."""
        self.at.loss = distributed.all_reduce_mean(self.at.loss)
        if not torch.isfinite(self.at.loss):
            raise DivergedError(
                f"{self.recipe.method}: the loss is not finite in epoch {len(self.at.log)}",
                hint="lower --lr; the last checkpoint is kept",
            )
        return self.at.loss

    def _measure(self, epochs_done: int, labels: np.ndarray) -> None:
        """Lets the monitor measure, where it is due. A measurement that fails is reported and does
        not stop the training."""
        embedding = self.method.networks().embedding
        if (
            not monitor.due(epochs_done, self.recipe.train.epochs)
            or epochs_done in [line["epochs"] for line in self.at.probes]
            or embedding is None
        ):
            return
        started, x_IC = time.perf_counter(), self.extract(embedding)

        def measured() -> dict[str, Any] | None:
            try:
                return monitor.measure(x_IC, labels, epochs_done, device=str(self.device))
            except UserError as mistake:
                print(f"no measurement after {epochs_done} epochs. {mistake}")
                return None

        # the other processes wait for the main one here, and not in the next step: NCCL would spin
        # there on the GPUs that k-means runs on
        if found := distributed.broadcast_from_main(measured):
            seconds = round(time.perf_counter() - started, 3)
            self.at.probes.append({**found, "seconds": seconds})

    @torch.inference_mode()
    def extract(
        self,
        module: nn.Module,
        epoch: int | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> np.ndarray:
        """The module's output in eval mode for all images, in order, [I, C]: on their centre crops
        or, with an ``epoch``, on one random view of each that belongs to this epoch. It is written
        row by row into the array returned, so nothing is held twice.

        Each process takes whole parts of the images, so that features do not depend on the number
        of processes. The main process gets all rows, the others [0, 0]."""
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
        features: np.ndarray = np.empty((0, 0), dtype)
        for now in zip_longest(*shares, fillvalue=parts[0][:0]):
            rows = distributed.gather_rows_to_main(
                self._output(module, next(inputs, None)), [len(part) for part in now]
            )
            if rows is not None:
                if not features.size:
                    features = np.empty((len(self.views), rows.shape[1]), dtype)
                features[np.concatenate(now)] = rows.numpy()
        module.train(was_training)
        return features

    def _output(self, module: nn.Module, inputs: Tensor | None) -> Tensor | None:
        if inputs is None:
            return None
        with autocast(self.recipe.train.precision, inputs.device):
            output: Tensor = module(inputs)
            return output.float().cpu()

    # Checkpoints ----------------------------------------------------------------------------------

    def _save(self) -> None:
        """Writes a checkpoint; every ``keep_every`` epochs it is a milestone. DivergedError if the
        loss is not finite."""
        self._finite_loss()
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
        """Resumes from the newest checkpoint, where there is one."""
        state = distributed.broadcast_from_main(self.saved.read) if self.saved else None
        if state:
            self.at = Position(**state["position"])
            self.at.loss = self.at.loss.to(self.device)
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])


class _Loss(nn.Module):
    """A method's loss as a forward pass, which DistributedDataParallel needs."""

    def __init__(self, method: Method):
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
    """Takes one optimiser step on ``loss`` and returns its value, on the device. Never synchronises
    with the device."""
    with autocast(precision, index_N.device):
        value = loss(views, index_N)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return value.detach()


def compile_networks(method: nn.Module) -> None:
    """Compiles every network of the method with torch.compile, in place: names and checkpoints stay
    as they are. UserError on a CPU without a C++ compiler, which torch.compile needs there."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if next(method.parameters()).device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            "--compile needs a C++ compiler on a CPU, and there is none",
            hint="install g++, or leave out --compile",
        )
    for network in method.children():
        if not isinstance(network, nn.ModuleList):  # its members are called one by one
            network.compile()
