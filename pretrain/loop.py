"""The training loop of every method: steps, schedule, log, checkpoints. It knows no method.

A method is a module with ``num_views``, ``backbone``, ``loss(views, index) -> Tensor`` and, where it needs them,
``start_epoch(epoch, extract) -> dict`` run before each epoch, ``draw_batches(epoch, steps)`` for batches of its own choice (image
numbers, [steps, batch]; else a permutation), and ``end_epoch() -> dict``; the dicts go to the log. ``renewed`` are the parameters
that start_epoch has drawn anew, ``unscheduled`` those that keep the peak rate. Where it has them, its ``projection`` head and its
``momentum_encoder`` (backbone, head) are exported too, for evaluations that use embeddings.

A run folder holds ``log.jsonl`` (one line per epoch), ``checkpoint.pt`` (to resume from; removed when done) and, when the run
is finished, ``encoder.safetensors`` (checkpoints.export) and ``course.json`` (the log and the probes, see probe.py, with the
run's key). Resuming is exact on the CPU: order, views and draws are
functions of (seed, epoch, image), the rest is in the checkpoint. On a GPU the same holds up to the rounding of its kernels,
whose order of summation is not fixed.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import optim, probe
from pretrain.precision import Precision, autocast
from pretrain.recipes import Recipe, run_key
from pretrain.views import Views, open_views
from protobench import checkpoints, files, keyed
from protobench.errors import UserError
from protobench.images import ImageList
from protobench.progress import progress


def pretrain(recipe: Recipe, images: ImageList | None, out: Path, *, seed: int, device: str = "cpu", workers: int = 0,
             resume: bool = True) -> Path:
    """Trains ``recipe`` on ``images`` into the folder ``out`` and returns the path of the exported encoder.

    ``images`` may be None for a recipe without epochs. Continues from the folder's checkpoint if there is one and
    ``resume`` is set. Raises UserError if the folder belongs to another run, and if the loss is not finite (the
    checkpoint of the epoch before stays).
    """
    _check(recipe)
    key = run_key(recipe, images, seed)
    encoder_path, checkpoint_path = out / "encoder.safetensors", out / "checkpoint.pt"
    if encoder_path.exists() and resume:
        try:
            found = checkpoints.load(encoder_path).key
        except UserError as damage:
            print(f"training again, the encoder in the run folder cannot be used. {damage}")
            encoder_path.unlink()
            found = None
        if found == key:
            return encoder_path
        if found:
            raise UserError("this folder holds the encoder of another run (other recipe, data or seed)", at=out,
                            hint="choose another --out, or --no-resume to train anew")
    stale = [*out.glob(".*.tmp")]  # of a killed run
    for path in stale if resume else [*stale, encoder_path, checkpoint_path]:
        path.unlink(missing_ok=True)
    torch.manual_seed(keyed.seed(seed, "init"))
    labels, num_classes = (torch.from_numpy(images.labels), len(images.classes)) if images else (torch.empty(0), 0)
    method = import_module(f"pretrain.{recipe.method}").build(recipe, labels, num_classes, seed)
    method = method.to(device, memory_format=torch.channels_last)
    if recipe.train.compile:
        compile_networks(method)
    optimizer = optim.optimizer(recipe.train, method)
    log, probes = _resume(checkpoint_path, key, method, optimizer, device) if resume else ([], [])
    if images and recipe.train.epochs:
        views = open_views(recipe, images, seed, device, workers)
        todo = range(len(log), recipe.train.epochs)
        for epoch in progress(todo, desc=f"{recipe.method} seed {seed}", unit=" epochs", total=len(todo)):
            probes = _probes(probes, method, views, images, epoch, recipe, device)  # on what is saved: a kill costs no more
            log.append(_epoch(method, optimizer, views, recipe, epoch, len(images)))
            state = {"key": key, "log": log, "probes": probes, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
            files.write_atomic(checkpoint_path, partial(torch.save, state))
            files.write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
        probes = _probes(probes, method, views, images, recipe.train.epochs, recipe, device)
        files.write_text(out / "course.json", json.dumps({"key": key, "epochs": log, "probes": probes}) + "\n")
    checkpoints.export(encoder_path, method.backbone, projection=getattr(method, "projection", None),
                       momentum=getattr(method, "momentum_encoder", None), key=key, input_=recipe.input, trained={
        "method": recipe.method, "recipe": asdict(recipe), "seed": seed, "data": images and images.fingerprint,
        "unreadable": len(images.unreadable) if images else 0,
        "seconds": round(sum(line["seconds"] for line in log), 1)})
    checkpoint_path.unlink(missing_ok=True)
    return encoder_path


def compile_networks(method: nn.Module) -> None:
    """torch.compile of every network of the method, in place: names and checkpoints stay as they are. UserError on a CPU without
    the compiler that it needs there."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if next(method.parameters()).device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError("--compile needs a C++ compiler on a CPU, and there is none", hint="install g++, or leave out --compile")
    for network in method.children():
        if not isinstance(network, nn.ModuleList):  # whose members are called one by one
            network.compile()


def _check(recipe: Recipe) -> None:
    train = recipe.train
    if train.epochs < 0 or train.batch_size < 2:
        raise UserError(f"{train.epochs} epochs of batches of {train.batch_size}", hint="--epochs from 0, --batch-size from 2")
    if not all(0 <= value < float("inf") for value in (train.lr, train.weight_decay, train.sgd_momentum)):
        raise UserError("--lr, --weight-decay and --sgd-momentum must be finite and not negative")
    augment = recipe.augment
    if not all(0 <= p <= 1 for p in (augment.flip, augment.jitter_p, augment.grayscale, augment.blur)):
        raise UserError("--flip, --jitter-p, --grayscale and --blur are probabilities, from 0 to 1")
    if augment.size < 1 or not 0 < augment.min_area <= 1:
        raise UserError(f"views of --size {augment.size} from --min-area {augment.min_area}",
                        hint="--size from 1, --min-area above 0 and at most 1")
    if not all(0 <= x < float("inf") for x in augment.jitter) or augment.jitter[3] > 0.5:
        raise UserError(f"--jitter {augment.jitter}: brightness, contrast and saturation are from 0, hue is from 0 to 0.5")


def _probes(before: list[dict], method: Any, views: Views, images: ImageList, done: int, recipe: Recipe,
            device: str) -> list[dict]:
    """The probes so far, with one more where it is due. One that cannot be taken is told, and does not stop the training."""
    if not probe.due(done, recipe.train.epochs) or done in [line["epochs"] for line in before] or not probe.embeds(method):
        return before
    started = time.perf_counter()
    try:
        extract = partial(_extract, views=views, precision=recipe.train.precision)
        found = probe.probe(method, extract, images.labels, done, device=device)
    except UserError as mistake:
        print(f"no probe after {done} epochs. {mistake}")
        return before
    return [*before, {**found, "seconds": round(time.perf_counter() - started, 3)}]


def _epoch(method: Any, optimizer: torch.optim.Optimizer, views: Views, recipe: Recipe, epoch: int, images: int) -> dict:
    started = time.perf_counter()
    start_epoch: Callable | None = getattr(method, "start_epoch", None)
    extract = partial(_extract, views=views, precision=recipe.train.precision)
    log = start_epoch(epoch, extract) if start_epoch else {}
    for parameter in getattr(method, "renewed", ()):
        optimizer.state.pop(parameter, None)  # the momentum of weights that are no more
    e_step = time.perf_counter() - started
    method.train()
    steps = images // recipe.train.batch_size
    draw_batches: Callable | None = getattr(method, "draw_batches", None)
    chosen = draw_batches(epoch, steps) if draw_batches else views.order(epoch)
    total, rate = torch.zeros((), device=next(method.parameters()).device), 0.0
    for step, (batch, index) in enumerate(views.batches(epoch, method.num_views, chosen)):
        rate = optim.learning_rate(recipe.train, epoch, step, steps)
        optim.set_rate(optimizer, rate)
        total += update(method, optimizer, batch, index, recipe.train.precision)  # read once an epoch
    mean = float(total) / steps
    if not np.isfinite(mean):
        raise UserError(f"{recipe.method}: the loss is not finite in epoch {epoch}",
                        hint="lower --lr; the checkpoint of the epoch before is kept")
    end_epoch: Callable | None = getattr(method, "end_epoch", None)
    log = {**log, **(end_epoch() if end_epoch else {})}
    return {"epoch": epoch, "loss": mean, "lr": rate, "seconds": round(time.perf_counter() - started, 3),
            "e_step_seconds": round(e_step, 3), **log}


def update(method: Any, optimizer: torch.optim.Optimizer, views: list[Tensor], index_N: Tensor, precision: Precision) -> Tensor:
    """One step of a method; its loss, on the device. Nothing here waits for the device."""
    with autocast(precision, index_N.device):
        loss = method.loss(views, index_N)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def _extract(module: nn.Module, views: Views, epoch: int | None = None, dtype: type = np.float32,
             precision: Precision = "fp32") -> np.ndarray:
    """[I, C]: the module's output in eval mode for all images, in order; on their centre crops or, of an ``epoch``, on one random
    view of each. Written row by row into the array returned, so nothing is held twice."""
    was_training = module.training
    module.eval()
    found: np.ndarray = np.empty((0, 0), dtype)
    done = 0
    for inputs in views.centre_crops() if epoch is None else views.one_view(epoch):
        with autocast(precision, inputs.device):
            output = module(inputs)
        output = output.float().cpu().numpy()
        if not done:
            found = np.empty((len(views), output.shape[1]), dtype)
        found[done : done + len(output)] = output
        done += len(output)
    module.train(was_training)
    return found


def _resume(path: Path, key: str, method: nn.Module, optimizer: torch.optim.Optimizer,
            device: str) -> tuple[list[dict], list[dict]]:
    """The log and the probes of the epochs done."""
    if not path.exists():
        return [], []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as failure:  # torch.load raises half a dozen kinds for a damaged file
        raise UserError("the run's checkpoint is damaged", at=path, hint="delete it to start this run again") from failure
    if not isinstance(state, dict) or not state.keys() >= {"key", "log", "method", "optimizer"}:
        raise UserError("the run's checkpoint is not one of this program's", at=path, hint="delete it to start this run again")
    if state["key"] != key:
        raise UserError("this folder holds a checkpoint of another run (other recipe, data or seed)", at=path,
                        hint="choose another --out, or --no-resume to train anew")
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return state["log"], state.get("probes", [])
