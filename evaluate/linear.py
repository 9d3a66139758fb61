"""Linear probes: a logistic regression on frozen features, on ImageNet and Places205 (PCL's Table
3) or CIFAR (SPCL).

Examples:

    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet
    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet --lr 1 5 10 30  # one pass trains all four
    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/places205 --dataset places205
    python evaluate/linear.py --ckpt spcl.pth --data /data/cifar --dataset cifar10
    torchrun --nproc_per_node 8 evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet
    python evaluate/linear.py --ckpt encoder.safetensors  # no data at hand: the embedded images

  imagenet   pooled feature (2048-D), 100 epochs, learning rate 10 (appendix E; the released code has 5, MoCo's 30).
  places205  conv5 pooled to 2x2 (8192-D; "~9000-D" in the paper), 40 epochs, learning rate 0.3, behind a BatchNorm without
             affine part, as Goyal et al. have it; the paper does not say whether it has one:
             --no-batch-norm is the other.
  cifar10,   pooled feature, 100 epochs, learning rate 0.1 x batch / 256, on a cosine down to 0
  (SPCL's released code, which cifar100   uses Nesterov's momentum; here it is the plain one). On
  the embedded images, which stand in: 0.1, 1 and 10 side by
             side, because their ten epochs are too few for 0.1.

All: SGD, momentum 0.9, no weight decay, batches of 256, the rate x 0.1 at 60 and 80 % of the epochs
(CIFAR excepted), random crops and flips, one centre crop in the test; the score is that of the
*last* epoch. Several rates train side by side on the features of one forward pass; a tenth of the
training images is then held out and chooses among them, never the test set."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from evaluate import chance
from protobench import keyed, records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import cifar, decoding, imagenet, places
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli, files
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when a score changes for equal weights, images and parameters."""

SAVE_SECONDS = 600.0
"""How much of an epoch a kill can lose."""
HELD_OUT = 10
"""One image in so many chooses among several learning rates."""


@dataclass(frozen=True)
class Config:
    """Linear probes on frozen features."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder (train/ and val/), that of Places205's lists and images, or that with
    CIFAR's cifar-10-batches-py or cifar-100-python; without it the embedded images"""
    dataset: Literal["imagenet", "places205", "cifar10", "cifar100"] = "imagenet"
    lr: tuple[float, ...] = ()
    """learning rate; several: chosen on held-out training images. Default 10 for imagenet, 0.3 for
    places205; for CIFAR 0.1 x batch / 256, on embedded data 0.1 1 10"""
    epochs: int | None = None
    """default 100, 40 for places205, 10 on embedded data"""
    batch_size: int = 256
    sgd_momentum: float = 0.9
    weight_decay: float = 0.0
    batch_norm: bool | None = None
    """of the features, without affine part; default on for places205 only"""
    seed: int = 0
    """of initialisation, order and crops"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record, whose
    cell is off protocol"""
    results: Path = Path("results/scores")
    """where the record is written; a stopped run leaves its state there and goes on from its last
    epoch"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    def params(self) -> dict[str, Any]:
        """What determines the score of a checkpoint on given images."""
        is_places, is_cifar = self.dataset == "places205", self.dataset.startswith("cifar")
        epochs = (
            self.epochs
            if self.epochs is not None
            else 10
            if bundled.is_used(self.data)
            else 40
            if is_places
            else 100
        )
        params = {
            "lr": self.lr or self._default_lr(),
            "epochs": epochs,
            "batch_size": self.batch_size,
            "sgd_momentum": self.sgd_momentum,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "batch_norm": is_places if self.batch_norm is None else self.batch_norm,
            "pooling": "2x2" if is_places else "average",
        }
        return (
            params | {"schedule": "cosine"} if is_cifar else params
        )  # absent elsewhere: records are found by this dict

    def _default_lr(self) -> tuple[float, ...]:
        if self.dataset.startswith("cifar"):
            return (
                (0.1, 1.0, 10.0) if bundled.is_used(self.data) else (0.1 * self.batch_size / 256,)
            )
        return (0.3,) if self.dataset == "places205" else (10.0,)


class Heads:
    """L linear classifiers that share their inputs and differ in the learning rate. Shapes: N
    batch, D feature, C classes.

    A head whose gradient is not finite is stopped before the step that would spoil it, and counts
    as diverged."""

    def __init__(
        self, rates: tuple[float, ...], dim: int, classes: int, params: dict[str, Any], device: str
    ):
        import torch

        rng = torch.Generator().manual_seed(keyed.seed(params["seed"], "head"))
        weight_CD = 0.01 * torch.randn(classes, dim, generator=rng)
        self.weight_LCD = weight_CD.to(device).repeat(len(rates), 1, 1)
        self.bias_LC = torch.zeros(len(rates), classes, device=device)
        self.rate_L = torch.tensor(rates, device=device)
        self.alive_L = torch.ones(len(rates), dtype=torch.bool, device=device)
        self.velocity = [torch.zeros_like(self.weight_LCD), torch.zeros_like(self.bias_LC)]
        self.norm = (
            torch.nn.BatchNorm1d(dim, affine=False).to(device) if params["batch_norm"] else None
        )
        self.momentum, self.decay = params["sgd_momentum"], params["weight_decay"]

    def logits(self, x_ND: Any) -> Any:
        """[L, N, C], BatchNorm with its running statistics."""
        x_ND = x_ND if self.norm is None else self.norm.eval()(x_ND)
        return x_ND @ self.weight_LCD.transpose(1, 2) + self.bias_LC[:, None]

    def step(self, x_ND: Any, y_N: Any, factor: float) -> Any:
        """One step of SGD on the mean cross-entropy, each head at its rate x ``factor``; returns
        the losses [L]."""
        import torch

        x_ND = x_ND if self.norm is None else self.norm.train()(x_ND)
        log_p_LNC = (x_ND @ self.weight_LCD.transpose(1, 2) + self.bias_LC[:, None]).log_softmax(2)
        rows_N = torch.arange(len(y_N), device=y_N.device)
        loss_L = -log_p_LNC[:, rows_N, y_N].mean(1)
        error_LNC = log_p_LNC.exp()
        error_LNC[:, rows_N, y_N] -= 1
        error_LNC /= len(y_N)
        gradients = [error_LNC.transpose(1, 2) @ x_ND, error_LNC.sum(1)]
        self.alive_L &= torch.isfinite(loss_L) & torch.isfinite(gradients[0]).all(2).all(1)
        for weight, gradient, velocity in zip(
            (self.weight_LCD, self.bias_LC), gradients, self.velocity, strict=True
        ):
            shape = (-1, *[1] * (weight.ndim - 1))
            velocity.mul_(self.momentum).add_(gradient + self.decay * weight)
            weight.copy_(
                torch.where(
                    self.alive_L.view(shape),
                    weight - factor * self.rate_L.view(shape) * velocity,
                    weight,
                )
            )
        return loss_L

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from."""
        return {
            "weight": self.weight_LCD,
            "bias": self.bias_LC,
            "alive": self.alive_L,
            "velocity": self.velocity,
            "norm": self.norm.state_dict() if self.norm else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts a ``state`` back."""
        self.weight_LCD.copy_(state["weight"])
        self.bias_LC.copy_(state["bias"])
        self.alive_L.copy_(state["alive"])
        for velocity, saved in zip(self.velocity, state["velocity"], strict=True):
            velocity.copy_(saved)
        if self.norm is not None:
            self.norm.load_state_dict(state["norm"])


def factor(epoch: int, epochs: int, schedule: str = "steps") -> float:
    """Of the learning rate: x 0.1 at 60 and at 80 % of the epochs, or a "cosine" that would reach 0
    after the last one."""
    if schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    return 0.1 ** sum(epoch >= round(share * epochs) for share in (0.6, 0.8))


def order(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch, shuffled."""
    return images[keyed.generator(seed, "order", epoch).permutation(len(images))]


def train(
    heads: Heads,
    compute: Any,
    images: ImageList,
    chosen: np.ndarray,
    input_: Any,
    params: dict[str, Any],
    *,
    device: str,
    workers: int,
    saved: Any,
) -> None:
    """Trains ``heads`` on random crops of the ``chosen`` images; goes on from the state left in
    ``saved``, which is renewed after each epoch, every ten minutes and when the program is told to
    stop. Of several processes each computes the features of its share of a batch, and the first
    one's heads are trained on all of them."""
    import torch

    from protobench.data.loading import RandomCrops, batches
    from protobench.runtime import distributed
    from protobench.runtime.periodic_saver import PeriodicSaver

    labels = torch.from_numpy(images.labels).to(device)
    size, crops = params["batch_size"], RandomCrops(images, input_, params["seed"])
    steps, schedule = len(chosen) // size, params.get("schedule", "steps")
    sizes = [len(distributed.shard(size, rank)) for rank in range(distributed.world_size())]
    done = distributed.broadcast_from_main(lambda: _resume(heads, saved))

    def save() -> None:
        if not heads.alive_L.any():
            raise UserError(
                f"the probe diverged at every learning rate by epoch {epoch}", hint="lower --lr"
            )
        saved.write({"done": divmod(epoch * steps + step, steps), "heads": heads.state()})

    saver = PeriodicSaver(save, SAVE_SECONDS)
    with progress(
        desc="linear probe",
        unit=" steps",
        total=params["epochs"] * steps - done[0] * steps - done[1],
    ) as bar:
        for epoch in range(done[0], params["epochs"]):
            first = done[1] if epoch == done[0] else 0
            ordered = order(chosen, params["seed"], epoch)[: steps * size]
            where = [[(epoch, int(i)) for i in part] for part in np.split(ordered, steps)][first:]
            mine = batches(
                crops,
                workers=workers,
                device=device,
                batch_sampler=list(map(distributed.shard_of, where)),
            )
            with saver.deferring_signals():
                for step, (part, pixels) in enumerate(
                    zip(where, mine, strict=True), start=first + 1
                ):
                    if (
                        x_ND := distributed.gather_rows_to_main(compute(pixels), sizes)
                    ) is not None:
                        heads.step(
                            x_ND.to(device),
                            labels[[i for _, i in part]],
                            factor(epoch, params["epochs"], schedule),
                        )
                    bar.update()
                    saver.after_step(due=step == steps)


def _resume(heads: Heads, saved: Any) -> tuple[int, int]:
    """How many epochs, and steps of the next one, are done."""
    if (state := saved.read()) is None:
        return 0, 0
    heads.restore(state["heads"])
    return tuple(state["done"])


def accuracies(
    heads: Heads, x_ND: np.ndarray, labels: np.ndarray, device: str
) -> tuple[list[float], list[float]]:
    """Top-1 and top-5 in percent, per head."""
    import torch

    right = np.zeros((2, len(heads.rate_L)))
    for start in range(0, len(x_ND), 4096):
        x = torch.from_numpy(np.array(x_ND[start : start + 4096])).to(
            device
        )  # a copy: cached features cannot be written to
        logits_LNC = heads.logits(x)
        hit = (
            logits_LNC.topk(min(5, logits_LNC.shape[2])).indices.cpu().numpy()
            == labels[start : start + 4096, None]
        )
        right += hit[:, :, 0].sum(1), hit.any(2).sum(1)
    top1, top5 = 100 * right / len(x_ND)
    return top1.round(6).tolist(), top5.round(6).tolist()


# From checkpoint to record ------------------------------------------------------------------------


def data_lists(
    data: Path | None, dataset: str = "imagenet", skip_bad_images: int = 0
) -> tuple[ImageList, ImageList]:
    """Training and test images of a data set; the embedded one where ``data`` is None. See Config
    for ``skip_bad_images``."""
    root = data or bundled.ensure()
    if dataset.startswith("cifar"):
        lists = cifar.read_both(root, dataset)
    else:
        lists = places.read_both(root) if dataset == "places205" else imagenet.read_both(root)
    return decoding.leave_out(lists, skip_bad_images)


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "linear",
        "data_name": config.dataset,
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Scores the checkpoint and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of
    from protobench.runtime.run_state import RunState

    params = config.params()
    rates = params["lr"]
    _check(params)
    started = time.perf_counter()
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading)
    print(encoder.summary())
    with distributed.main_process_first():
        lists = data_lists(config.data, config.dataset, config.skip_bad_images)
    training, test = lists
    if len(training) < params["batch_size"]:
        raise UserError(
            f"{len(training)} training images are less than a batch of {params['batch_size']}",
            hint="lower --batch-size",
        )
    if params["batch_size"] < distributed.world_size():
        raise UserError(
            f"a batch of {params['batch_size']} does not split over {distributed.world_size()}"
            " processes",
            hint="start fewer",
        )
    everything = np.arange(len(training))
    held = everything % HELD_OUT == 0 if len(rates) > 1 else np.zeros(len(training), dtype=bool)
    identity = unit(encoder.key, lists, config)
    key = files.sha256([identity, [images.cache_key for images in lists], subject])
    compute = features.Forward(encoder, encoder.input, params["pooling"], device)
    before = encoders.digest_of(compute.backbone.state_dict())
    how: dict[str, Any] = {
        "pooling": params["pooling"],
        "device": device,
        "workers": config.workers,
    }
    test_ND = features.extract(encoder, test, **how)
    heads = Heads(rates, test_ND.shape[1], len(training.classes), params, device)
    saved = RunState(config.results, f".linear-{key[:12]}", key)
    train(
        heads,
        compute,
        training,
        everything[~held],
        encoder.input,
        params,
        device=device,
        workers=config.workers,
        saved=saved,
    )
    if encoders.digest_of(compute.backbone.state_dict()) != before:
        raise RuntimeError("the frozen backbone moved while the probe was trained")
    held_ND = (
        features.extract(encoder, training.subset(everything[held]), **how)
        if len(rates) > 1
        else None
    )
    if not distributed.is_main():
        return None
    top1, top5 = accuracies(heads, test_ND, test.labels, device)
    alive = heads.alive_L.tolist()
    sweep = [
        {"lr": rate, "top1": a, "top5": b, "diverged": not ok}
        for rate, a, b, ok in zip(rates, top1, top5, alive, strict=True)
    ]
    best = 0
    if held_ND is not None:
        chosen_by, _ = accuracies(heads, held_ND, training.labels[held], device)
        sweep = [{**line, "held_out": value} for line, value in zip(sweep, chosen_by, strict=True)]
        best = max((i for i, ok in enumerate(alive) if ok), key=lambda i: chosen_by[i])
    odd = chance.accuracy_remark(
        round(top1[best] * len(test) / 100), test.labels, trained=not encoder.report.untouched
    )
    path = records.write(
        config.results,
        identity,
        [{"draw": 0, "value": top1[best], "top5": top5[best], "lr": rates[best]}],
        subject=subject or records.subject_of(config.ckpt),
        sweep=sweep,
        metric={"name": "top-1", "unit": "%", "higher_is_better": True, "test_images": len(test)},
        checkpoint=encoder.report.to_json(),
        feature={"dim": int(test_ND.shape[1]), "pooling": params["pooling"]},
        data=records.data_of(config.dataset, lists, held_out=int(held.sum())),
        warnings=[odd],
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )
    saved.clear()
    return path


def _check(params: dict[str, Any]) -> None:
    rates = params["lr"]
    if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(f"--lr must be different positive numbers, not {rates}")
    if params["epochs"] < 1 or params["batch_size"] < 2:
        raise UserError("--epochs is at least 1, --batch-size at least 2")
    if not 0 <= params["sgd_momentum"] < 1 or not 0 <= params["weight_decay"] < float("inf"):
        raise UserError("--sgd-momentum lies in [0, 1), --weight-decay is not negative")


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    (run,), params, data = record["runs"], record["unit"]["params"], record["data"]
    lines = [
        f"linear probe on {data['name']}, {record['feature']['dim']}-D, {params['epochs']} epochs"
        f" of {data['train_images'] - data['held_out']} images, {record['metric']['test_images']}"
        " test images, accuracy in %"
    ]
    if data["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    lines.append("lr        top-1   top-5" + ("   held out" if data["held_out"] else ""))
    for line in record["sweep"]:
        lines.append(
            f"{line['lr']:<8g}{line['top1']:7.1f} {line['top5']:7.1f}"
            + (f"{line['held_out']:11.1f}" if data["held_out"] else "")
            + (
                "   diverged; stopped before"
                if line["diverged"]
                else (
                    "   <- chosen on the held-out images"
                    if data["held_out"] and line["lr"] == run["lr"]
                    else ""
                )
            )
        )
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
