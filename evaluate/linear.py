"""Linear probes: a logistic regression on frozen features, on ImageNet and Places205 (PCL's Table
3) or CIFAR (SPCL).

Examples:

    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet
    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet --lr 1 5 10 30  # one pass trains all four
    python evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/places205 --dataset places205
    python evaluate/linear.py --ckpt spcl.pth --data /data/cifar --dataset cifar10
    torchrun --nproc_per_node 8 evaluate/linear.py --ckpt pcl_v2.pth.tar --data /data/imagenet
    python evaluate/linear.py --ckpt encoder.safetensors  # bundled synthetic data

  imagenet   pooled feature (2048-D), 100 epochs, learning rate 10 (appendix E; the released code
             has 5). --probe has those of papers whose numbers PCL and SPCL quote: the best rate
             differs from one encoder to another.
               moco    30, 100 epochs, otherwise as PCL (main_lincls.py).
               simclr  0.1 x batch / 256, 90 epochs, cosine, Nesterov's momentum (the README of
                       google-research/simclr, there with batches of 4096).
               spcl    0.1 x batch / 256, 100 epochs, cosine, Nesterov's momentum (SPCL's released
                       code; its paper gives none).
  places205  conv5 pooled to 2x2 (8192-D; "~9000-D" in the paper), 40 epochs, learning rate 0.3,
             behind a BatchNorm without affine parameters, as Goyal et al. have it; the paper does
             not say whether it has one: --no-batch-norm leaves it out.
  cifar10,   pooled feature, 100 epochs, learning rate 0.1 x batch / 256 on a cosine schedule down
  cifar100   to 0, Nesterov's momentum (SPCL's released code). On the bundled images, which stand in
             for CIFAR, and on cifar10-10k, the part of CIFAR-10 for a CPU: 10 epochs, with 0.1, 1
             and 10 side by side, because ten epochs are too few for 0.1.

All: SGD, momentum 0.9, no weight decay, batches of 256, the rate x 0.1 at 60 and 80 % of the epochs
(where there is no cosine), random crops and flips, one centre crop in the test; the score is that of the
*last* epoch. Several rates train side by side on the features of one forward pass; a tenth of the
training images is then held out to choose among them, never the test set."""  # noqa: E501 (examples are one line each)

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evaluate import chance
from evaluate.evaluation import (
    CONVOLUTIONAL_MAP,
    Context,
    EvalConfig,
    Evaluation,
    Metric,
    Scores,
    Wanted,
)
from protobench import keyed, outcomes
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.records import Record
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

SAVE_SECONDS = 600.0
"""How much of an epoch a kill can lose."""
HELD_OUT = 10
"""One training image in so many chooses among several learning rates."""


@dataclass(frozen=True)
class Config(EvalConfig):
    """Linear probes on frozen features."""

    dataset: Literal["imagenet", "places205", "cifar10", "cifar10-10k", "cifar100"] = "imagenet"
    lr: tuple[float, ...] = ()
    """learning rate; several: chosen on held-out training images; default that of --probe for
    imagenet, 0.3 for places205; for CIFAR 0.1 x batch / 256, for cifar10-10k and on the bundled
    data 0.1 1 10"""
    probe: Literal["pcl", "moco", "simclr", "spcl"] = "pcl"
    """whose rate, epochs and schedule on imagenet (see above); on the bundled data always PCL's"""
    epochs: int | None = None
    """default 100 (probe simclr: 90), 40 for places205, 10 for cifar10-10k and on the bundled
    data"""
    batch_size: int = 256
    sgd_momentum: float = 0.9
    weight_decay: float = 0.0
    batch_norm: bool | None = None
    """BatchNorm of the features, without affine parameters; default for places205 only"""
    seed: int = 0
    """seed of initialisation, order and crops"""

    def params(self) -> dict[str, Any]:
        """Return what determines the score of an encoder on given images."""
        is_places, on_bundled = self.dataset == "places205", bundled.is_used(self.data)
        probe = "pcl" if on_bundled or self.dataset != "imagenet" else self.probe
        default_epochs = 40 if is_places else 90 if probe == "simclr" else 100
        if on_bundled or self.dataset == "cifar10-10k":
            default_epochs = 10
        params = {
            "lr": self.lr or self._default_lr(probe),
            "epochs": default_epochs if self.epochs is None else self.epochs,
            "batch_size": self.batch_size,
            "sgd_momentum": self.sgd_momentum,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "batch_norm": is_places if self.batch_norm is None else self.batch_norm,
            "pooling": "2x2" if is_places else "average",
        }
        if self.dataset.startswith("cifar") or probe in ("simclr", "spcl"):
            params |= {"schedule": "cosine", "nesterov": True}
        return params

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        params = self.params()
        rates = params["lr"]
        if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) < len(rates):
            raise UserError(f"--lr must be different positive numbers, not {rates}")
        if params["epochs"] < 1 or params["batch_size"] < 2:
            raise UserError("--epochs must be at least 1, --batch-size at least 2")
        if not 0 <= params["sgd_momentum"] < 1 or not 0 <= params["weight_decay"] < float("inf"):
            raise UserError("--sgd-momentum must lie in [0, 1), --weight-decay in [0, inf)")

    @property
    def needs_resnet(self) -> str:
        """Why only a ResNet can be evaluated so."""
        return CONVOLUTIONAL_MAP if self.dataset == "places205" else ""

    def _default_lr(self, probe: str) -> tuple[float, ...]:
        if self.dataset == "places205":
            return (0.3,)
        if self.dataset == "imagenet" and probe in ("pcl", "moco"):
            return (10.0 if probe == "pcl" else 30.0,)
        is_on_bundled = self.dataset != "imagenet" and bundled.is_used(self.data)
        if is_on_bundled or self.dataset == "cifar10-10k":
            return (0.1, 1.0, 10.0)
        return (0.1 * self.batch_size / 256,)


class Heads:
    """L linear classifiers that share their inputs and differ in their learning rates. Shapes: N
    batch, D feature, C classes.

    A head whose gradient is not finite is frozen before the step that would spoil it, and counts as
    diverged."""

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
        self.nesterov = params.get("nesterov", False)

    def logits(self, x_ND: Any) -> Any:
        """Return logits [L, N, C], with the running statistics of BatchNorm."""
        x_ND = x_ND if self.norm is None else self.norm.eval()(x_ND)
        return x_ND @ self.weight_LCD.transpose(1, 2) + self.bias_LC[:, None]

    def step(self, x_ND: Any, y_N: Any, factor: float) -> Any:
        """Take a step of SGD on the mean cross-entropy, each head at its rate x ``factor``, and
        return the losses [L]."""
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
            gradient = gradient + self.decay * weight
            velocity.mul_(self.momentum).add_(gradient)
            step = gradient + self.momentum * velocity if self.nesterov else velocity
            weight.copy_(
                torch.where(
                    self.alive_L.view(shape),
                    weight - factor * self.rate_L.view(shape) * step,
                    weight,
                )
            )
        return loss_L

    def state(self) -> dict[str, Any]:
        """Return everything that training resumes from."""
        return {
            "weight": self.weight_LCD,
            "bias": self.bias_LC,
            "alive": self.alive_L,
            "velocity": self.velocity,
            "norm": self.norm.state_dict() if self.norm else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a ``state``."""
        self.weight_LCD.copy_(state["weight"])
        self.bias_LC.copy_(state["bias"])
        self.alive_L.copy_(state["alive"])
        for velocity, saved in zip(self.velocity, state["velocity"], strict=True):
            velocity.copy_(saved)
        if self.norm is not None:
            self.norm.load_state_dict(state["norm"])


def factor(epoch: int, epochs: int, schedule: str = "steps") -> float:
    """Return the factor of the learning rate in an epoch: x 0.1 at 60 and at 80 % of the epochs, or
    a "cosine" that would reach 0 after the last one."""
    if schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    return 0.1 ** sum(epoch >= round(share * epochs) for share in (0.6, 0.8))


def order(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the images of an epoch, shuffled."""
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
    """Train ``heads`` on random crops of the ``chosen`` images, resuming from the state in
    ``saved``, which is written after each epoch, every ten minutes and when the program is told to
    stop. Each rank computes the features of its shard of a batch; the heads of the main process are
    trained on all of them."""

    from protobench.data.loading import RandomCrops, batches, moved
    from protobench.runtime import distributed
    from protobench.runtime.periodic_saver import PeriodicSaver

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
                            moved(images.labels[[i for _, i in part]], device),
                            factor(epoch, params["epochs"], schedule),
                        )
                    bar.update()
                    saver.after_step(due=step == steps)


def _resume(heads: Heads, saved: Any) -> tuple[int, int]:
    """Restore the heads and return how many epochs, and steps of the next one, are done."""
    if (state := saved.read()) is None:
        return 0, 0
    heads.restore(state["heads"])
    epochs, steps = state["done"]
    return epochs, steps


def hits(heads: Heads, x_ND: np.ndarray, labels: np.ndarray, device: str) -> np.ndarray:
    """Return whether the label is the first, and among the first five answers: bool [2, L, N]."""
    import torch

    found_2LN = np.zeros((2, len(heads.rate_L), len(x_ND)), dtype=bool)
    for start in range(0, len(x_ND), 4096):
        part = slice(start, start + 4096)
        part_ND = np.array(x_ND[part])  # a copy: cached features are read-only
        logits_LNC = heads.logits(torch.from_numpy(part_ND).to(device))
        answers_LNR = logits_LNC.topk(min(5, logits_LNC.shape[2])).indices.cpu().numpy()
        hit_LNR = answers_LNR == labels[part, None]
        found_2LN[0, :, part], found_2LN[1, :, part] = hit_LNR[:, :, 0], hit_LNR.any(2)
    return found_2LN


def accuracies(hits_2LN: np.ndarray) -> tuple[list[float], list[float]]:
    """Return top-1 and top-5 accuracy in percent, per head."""
    top1, top5 = (100 * hits_2LN.mean(2)).round(6).tolist()
    return top1, top5


def _held_out(images: ImageList, rates: tuple[float, ...]) -> np.ndarray:
    """Return whether an image chooses among the rates, and is not trained on: bool [N]."""
    everything = np.arange(len(images))
    return everything % HELD_OUT == 0 if len(rates) > 1 else np.zeros(len(images), dtype=bool)


def wanted(config: Config, lists: tuple[ImageList, ...]) -> list[Wanted]:
    """Return the features of the test images, and of those held out, if any."""
    (training, test), params = lists, config.params()
    held = np.flatnonzero(_held_out(training, params["lr"]))
    chosen = [test, training.subset(held)] if len(held) else [test]
    return [Wanted(images, params["pooling"]) for images in chosen]


def passes(config: Config, lists: tuple[ImageList, ...]) -> int:
    """Return how many random crops pass through the frozen network."""
    params = config.params()
    return int(params["epochs"] * (~_held_out(lists[0], params["lr"])).sum())


def run(config: Config, context: Context) -> Scores | None:
    """Train the probes on the frozen encoder and score them on the test images."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed

    params, device, encoder = config.params(), context.device, context.encoder
    rates, (training, test) = params["lr"], context.lists
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
    held = _held_out(training, rates)
    of_test, *of_held = wanted(config, context.lists)
    compute = features.Forward(encoder, encoder.input, params["pooling"], device)
    before = encoders.digest_of(compute.backbone.state_dict())
    (test_ND,) = context.all_features([of_test])
    heads = Heads(rates, test_ND.shape[1], len(training.classes), params, device)
    train(
        heads,
        compute,
        training,
        np.flatnonzero(~held),
        encoder.input,
        params,
        device=device,
        workers=context.workers,
        saved=context.state,
    )
    if encoders.digest_of(compute.backbone.state_dict()) != before:
        raise RuntimeError("the frozen backbone moved while the probe was trained")
    held_ND = next(iter(context.all_features(of_held)), None)
    if not distributed.is_main():
        return None
    hits_2LN = hits(heads, test_ND, test.labels, device)
    top1, top5 = accuracies(hits_2LN)
    alive = heads.alive_L.tolist()
    sweep = [
        {"lr": rate, "top1": a, "top5": b, "diverged": not ok}
        for rate, a, b, ok in zip(rates, top1, top5, alive, strict=True)
    ]
    best = 0
    if held_ND is not None:
        chosen_by, _ = accuracies(hits(heads, held_ND, training.labels[held], device))
        sweep = [{**line, "held_out": value} for line, value in zip(sweep, chosen_by, strict=True)]
        best = max((i for i, ok in enumerate(alive) if ok), key=lambda i: chosen_by[i])
    right = round(top1[best] * len(test) / 100)
    return Scores(
        [
            {
                "draw": 0,
                "value": top1[best],
                "top5": top5[best],
                "lr": rates[best],
                "right": {"value": outcomes.pack(hits_2LN[0, best])},
            }
        ],
        Metric("top-1", "%", len(test)),
        warnings=(chance.accuracy_remark(right, test.labels, trained=context.trained),),
        data={"held_out": int(held.sum())},
        details={
            "sweep": sweep,
            "feature": {"dim": int(test_ND.shape[1]), "pooling": params["pooling"]},
        },
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    (best,), params, data = record["runs"], record["unit"]["params"], record["data"]
    title = (
        f"linear probe on {data['name']}, {record['feature']['dim']}-D, {params['epochs']} epochs"
        f" of {data['train_images'] - data['held_out']} images, {record['metric']['test_images']}"
        " test images, accuracy in %"
    )
    held_out = bool(data["held_out"])
    lines = [title, "lr        top-1   top-5" + "   held out" * held_out]
    for probe in record["sweep"]:
        line = f"{probe['lr']:<8g}{probe['top1']:7.1f} {probe['top5']:7.1f}"
        if held_out:
            line += f"{probe['held_out']:11.1f}"
        if probe["diverged"]:
            line += "   diverged; frozen before"
        elif held_out and probe["lr"] == best["lr"]:
            line += "   <- chosen on the held-out images"
        lines.append(line)
    return lines


EVALUATION = Evaluation(
    name="linear",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    passes=passes,
    minutes={"imagenet": 720, "places205": 540, "cifar10": 20, "cifar100": 20},
    seconds={"imagenet": 14, "places205": 14, "cifar10": 15, "cifar10-10k": 30, "cifar100": 15},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
