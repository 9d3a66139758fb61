"""Weighted k-nearest-neighbour classification on ImageNet (PCL's Table 4) or CIFAR.

Examples:

    python evaluate/knn.py --ckpt pcl_v1.pth.tar --data /data/imagenet
    python evaluate/knn.py --ckpt dino.pth --data /data/imagenet --feature pooled --k 10 20 100 200
    python evaluate/knn.py --ckpt resnet50.pth --data /data/cifar --dataset cifar10 --feature pooled
    python evaluate/knn.py --ckpt encoder.safetensors  # bundled synthetic data
    torchrun --nproc_per_node 8 evaluate/knn.py --ckpt FILE --data DIR  # one part of the bank per GPU

Each of the k nearest training images votes for its class with weight exp(v.v' / temperature), both
features of unit norm (section 4.2; Wu et al., CVPR 2018).

  --feature embedding  The output of the projection head, v and v' of the paper (128-D), with the
                       temperature of its training, 0.1. The default. The neighbours are momentum
                       features, as in the paper, where the checkpoint has a momentum encoder.
  --feature pooled     The backbone's pooled feature (2048-D) on both sides, with temperature 0.07,
                       as in later papers.

The paper states neither the feature nor the temperature, and its code has no kNN. The search is
exact: no index, no approximation. Features are processed in blocks, so memory does not grow with
the data."""  # noqa: E501 (examples are one line each)

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evaluate import chance
from evaluate.evaluation import Context, EvalConfig, Evaluation, Metric, Scores, Wanted
from protobench import outcomes
from protobench.checkpoints.layouts import Copy
from protobench.data.image_list import ImageList
from protobench.records import Record, Run
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

QUERIES, BANK = 384, 65_536
"""Rows and columns of a block of similarities: 100 MB."""

if TYPE_CHECKING:
    from protobench.features import Pooling


@dataclass(frozen=True)
class Config(EvalConfig):
    """Weighted k-nearest-neighbour classification."""

    dataset: Literal["imagenet", "cifar10", "cifar10-10k", "cifar100"] = "imagenet"
    k: tuple[int, ...] = (20, 200)
    """neighbours that vote; all values in one pass"""
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is compared"""
    temperature: float | None = None
    """default 0.1 for the embedding, 0.07 for the pooled feature"""

    @property
    def resolved_temperature(self) -> float:
        """The temperature used."""
        if self.temperature is not None:
            return self.temperature
        return 0.1 if self.feature == "embedding" else 0.07

    @property
    def copies(self) -> tuple[Copy | None, ...]:
        """The encoder of the queries, then that of the bank."""
        return (None, "momentum") if self.feature == "embedding" else (None,)

    def params(self) -> dict[str, Any]:
        """Return what determines the scores of an encoder on given images."""
        temperature = self.resolved_temperature
        return {"k": self.k, "feature": self.feature, "temperature": temperature}

    def check(self) -> None:
        """Raise UserError for numbers that make no sense."""
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise UserError(f"--k must be different numbers of at least 1, not {self.k}")
        if not 0 < self.resolved_temperature < float("inf"):
            raise UserError(f"--temperature must be positive, not {self.temperature}")


def score(
    bank_ND: np.ndarray,
    bank_labels: np.ndarray,
    query_MD: np.ndarray,
    labels: np.ndarray,
    ks: tuple[int, ...],
    temperature: float,
    *,
    device: str = "cpu",
) -> list[Run]:
    """Return one run per k: ``{"k", "draw", "value", "top5", "right"}``, in percent; ``right`` are
    the outcomes behind ``value`` (outcomes.py). Rows may have any norm, they are compared by their
    cosine; labels are int [N] and [M]."""
    import torch

    classes = int(max(bank_labels.max(), labels.max())) + 1
    similarity_MK, index_MK = nearest(bank_ND, query_MD, max(ks), device)
    neighbour_MK = torch.from_numpy(bank_labels)[index_MK]
    # relative to the nearest neighbour, whose weight is 1, so none overflows
    weight_MK = ((similarity_MK - similarity_MK[:, :1]) / temperature).exp()
    truth_M1 = torch.from_numpy(labels)[:, None]
    runs = []
    for k in ks:
        right_MR = np.zeros((len(labels), min(5, classes)), dtype=bool)
        for part in torch.arange(len(labels)).split(4096):
            vote_QC = weight_MK.new_zeros(len(part), classes).scatter_add_(
                1, neighbour_MK[part, :k], weight_MK[part, :k]
            )
            best_QR = vote_QC.topk(min(5, classes))
            # a class without a vote is no answer
            right_MR[part] = (best_QR.indices == truth_M1[part]) & (best_QR.values > 0)
        runs.append(
            {
                "k": k,
                "draw": 0,
                "value": round(float(100 * right_MR[:, 0].mean()), 6),
                "top5": round(float(100 * right_MR.any(1).mean()), 6),
                "right": {"value": outcomes.pack(right_MR[:, 0])},
            }
        )
    return runs


def nearest(bank_ND: np.ndarray, query_MD: np.ndarray, k: int, device: str) -> tuple[Any, Any]:
    """Return the k largest cosines of each query with the bank, in descending order, and their
    indices: [M, k] each.

    The bank is read and moved to the device once, a block at a time; the k best so far of every
    query are merged with each block's. Under torchrun each rank searches its own shard of the bank,
    and the results of all shards are merged."""
    import torch

    from protobench.features import unit_norm
    from protobench.runtime import distributed

    query = torch.from_numpy(unit_norm(query_MD)).to(device)
    mine = distributed.shard(len(bank_ND))
    blocks, parts = range(mine.start, mine.stop, BANK), query.split(QUERIES)
    best: list[tuple[Any, Any]] = [
        (query.new_empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.long, device=device))
        for part in parts
    ]
    # one buffer for all blocks: allocating it again costs more than the top k
    buffer = query.new_empty(QUERIES * min(BANK, len(mine)))
    bar = progress(desc="neighbours", unit=" blocks", total=len(blocks) * len(parts))
    for start in blocks:
        # torch warns of arrays that cannot be written to, as cached features are
        with warnings.catch_warnings(action="ignore"):
            block_BD = torch.from_numpy(
                np.ascontiguousarray(bank_ND[start : min(start + BANK, mine.stop)])
            ).to(device)
        scale_B = 1 / block_BD.norm(dim=1).clamp_min(1e-12)  # cheaper than dividing the rows
        for i, part_QD in enumerate(parts):
            cosine_QB = buffer[: len(part_QD) * len(block_BD)].view(len(part_QD), -1)
            value, index = (
                torch.mm(part_QD, block_BD.T, out=cosine_QB)
                .mul_(scale_B)
                .topk(min(k, len(block_BD)))
            )
            value, index = (
                torch.cat([best[i][0], value], 1),
                torch.cat([best[i][1], index + start], 1),
            )
            value, chosen = value.topk(min(k, value.shape[1]))
            best[i] = value, index.gather(1, chosen)
            bar.update()
    bar.close()
    similarity, index = (torch.cat(found) for found in zip(*best, strict=True))
    missing = (0, k - similarity.shape[1])  # in a shard of fewer than k
    every = (
        torch.nn.functional.pad(similarity, missing, value=-torch.inf),
        torch.nn.functional.pad(index, missing),
    )
    similarity, index = (torch.cat(distributed.all_gather(found), 1) for found in every)
    similarity, chosen = similarity.topk(k)
    return similarity.cpu(), index.gather(1, chosen).cpu()


def wanted(config: Config, lists: tuple[ImageList, ...]) -> tuple[Wanted, Wanted]:
    """Return which features are compared: the queries', then the bank's."""
    (train, test), is_embedding = lists, config.feature == "embedding"
    pooling: Pooling = "embedding" if is_embedding else "average"
    return Wanted(test, pooling), Wanted(train, pooling, copy=-1)


def run(config: Config, context: Context) -> Scores | None:
    """Classify the test images by their nearest training images."""
    from protobench.runtime import distributed

    train, test = context.lists
    if max(config.k) > len(train):
        raise UserError(f"k = {max(config.k)} of only {len(train)} images", hint="lower --k")
    query_MD, bank_ND = context.all_features(wanted(config, context.lists))
    runs = score(
        bank_ND,
        train.labels,
        query_MD,
        test.labels,
        config.k,
        config.resolved_temperature,
        device=context.device,
    )
    if not distributed.is_main():
        return None
    bank = context.encoders[-1].report
    return Scores(
        runs,
        Metric("top-1", "%", len(test)),
        warnings=tuple(
            chance.accuracy_remark(
                round(run["value"] * len(test) / 100), test.labels, trained=context.trained
            )
            for run in runs
        ),
        details={
            "feature": {
                "dim": int(query_MD.shape[1]),
                "pooling": config.feature,
                "copy": context.encoder.report.copy,
                "bank": bank.copy,
                **({"bank_bf16": asdict(bank.bf16)} if bank.bf16 else {}),
            }
        },
    )


def report(record: Record) -> list[str]:
    """Return the record as lines for the terminal."""
    feature, data = record["feature"], record["data"]
    title = (
        f"kNN, {record['metric']['test_images']} queries ({feature['copy']} encoder) among"
        f" {data['train_images']} training images ({feature['bank']} encoder), {feature['dim']}-D"
        f" {feature['pooling']} feature, temperature {record['unit']['params']['temperature']}"
    )
    rows = [f"{run['k']:<6}{run['value']:7.1f} {run['top5']:7.1f}" for run in record["runs"]]
    return [title, "k       top-1   top-5", *rows]


EVALUATION = Evaluation(
    name="knn",
    Config=Config,
    run=run,
    report=report,
    doc=__doc__,
    wanted=wanted,
    minutes={"imagenet": 25},
)

if __name__ == "__main__":
    cli.run(EVALUATION.main)
