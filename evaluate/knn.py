"""Weighted k-nearest-neighbour classification on ImageNet (PCL's Table 4) or CIFAR.

Examples:

    python evaluate/knn.py --ckpt pcl_v1.pth.tar --data /data/imagenet
    python evaluate/knn.py --ckpt dino.pth --data /data/imagenet --feature pooled --k 10 20 100 200
    python evaluate/knn.py --ckpt resnet50.pth --data /data/cifar --dataset cifar10 --feature pooled
    python evaluate/knn.py --ckpt encoder.safetensors  # no data at hand: the embedded images
    torchrun --nproc_per_node 8 evaluate/knn.py --ckpt FILE --data DIR  # the bank in eight parts, one a GPU

Every training image within the k nearest votes for its class with weight exp(v.v' / temperature),
both features of unit norm (section 4.2; Wu et al., CVPR 2018).

  --feature embedding  the projection head's output, v and v' of the paper (128-D); temperature 0.1, its training's. The default.
                       The neighbours are momentum features, as in the paper, where the checkpoint
                       has a momentum encoder.
  --feature pooled     the backbone's pooled feature (2048-D) on both sides, as in later papers;
  temperature 0.07, theirs.

The paper states neither the feature nor the temperature, and its code has no kNN. Exact: no index,
no approximation; the features are gone through in blocks, so memory does not grow with the data.
"""

import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from evaluate import chance
from protobench import records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import cifar, decoding, imagenet
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when a score changes for equal features and parameters."""

QUERIES, BANK = 384, 65_536
"""Rows and columns of a block of similarities: 100 MB."""


@dataclass(frozen=True)
class Config:
    """Weighted k-nearest-neighbour classification."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder (train/ and val/), or the folder that holds it as imagenet/, or that of
    CIFAR; without it the embedded images"""
    k: tuple[int, ...] = (20, 200)
    """neighbours that vote; all in one pass"""
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is compared"""
    temperature: float | None = None
    """default 0.1 for the embedding, 0.07 for the pooled feature"""
    dataset: Literal["imagenet", "cifar10", "cifar100"] = "imagenet"
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    skip_bad_images: int = 0
    """leave out up to so many images that cannot be decoded; they are counted in the record, whose
    cell is off protocol"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: LoadOptions = field(default_factory=LoadOptions)

    @property
    def sharpness(self) -> float:
        """The temperature used."""
        return (
            (0.1 if self.feature == "embedding" else 0.07)
            if self.temperature is None
            else self.temperature
        )

    def params(self) -> dict[str, Any]:
        """What determines the scores of a checkpoint on given images."""
        return {"k": self.k, "feature": self.feature, "temperature": self.sharpness}


def score(
    bank_ND: np.ndarray,
    bank_labels: np.ndarray,
    query_MD: np.ndarray,
    labels: np.ndarray,
    ks: tuple[int, ...],
    temperature: float,
    *,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """One run per k: ``{"k", "draw", "value", "top5"}``, in percent. Rows of any norm, compared by
    their cosine; labels int [N] and [M]."""
    import torch

    classes = int(max(bank_labels.max(), labels.max())) + 1
    similarity_MK, index_MK = nearest(bank_ND, query_MD, max(ks), device)
    neighbour_MK = torch.from_numpy(bank_labels)[index_MK]
    weight_MK = (
        (similarity_MK - similarity_MK[:, :1]) / temperature
    ).exp()  # of the nearest: 1, so none overflows
    truth_M1 = torch.from_numpy(labels)[:, None]
    runs = []
    for k in ks:
        right = np.zeros(2)
        for part in torch.arange(len(labels)).split(4096):
            vote_QC = weight_MK.new_zeros(len(part), classes).scatter_add_(
                1, neighbour_MK[part, :k], weight_MK[part, :k]
            )
            best_QR = vote_QC.topk(min(5, classes))
            right_QR = (best_QR.indices == truth_M1[part]) & (
                best_QR.values > 0
            )  # a class without a vote is no answer
            right += int(right_QR[:, 0].sum()), int(right_QR.sum())
        top1, top5 = 100 * right / len(labels)
        runs.append(
            {"k": k, "draw": 0, "value": round(float(top1), 6), "top5": round(float(top5), 6)}
        )
    return runs


def nearest(bank_ND: np.ndarray, query_MD: np.ndarray, k: int, device: str) -> tuple[Any, Any]:
    """The k largest cosines of each query with the bank, falling, and where they are: [M, k] each.
    The bank is read and taken to the device once, a block at a time; the k best so far of every
    query wait for the next block. Under torchrun each process goes through its own part of the
    bank, and the best of all parts are merged."""
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
    room = query.new_empty(
        QUERIES * min(BANK, len(mine))
    )  # of one block; making it anew costs more than the top k
    bar = progress(desc="neighbours", unit=" blocks", total=len(blocks) * len(parts))
    for start in blocks:
        with warnings.catch_warnings(
            action="ignore"
        ):  # cached features are mapped for reading alone, and only read here
            block_BD = torch.from_numpy(
                np.ascontiguousarray(bank_ND[start : min(start + BANK, mine.stop)])
            ).to(device)
        scale_B = 1 / block_BD.norm(dim=1).clamp_min(1e-12)  # cheaper than dividing the rows
        for i, part_QD in enumerate(parts):
            cosine_QB = room[: len(part_QD) * len(block_BD)].view(len(part_QD), -1)
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
    missing = (0, k - similarity.shape[1])  # in a part of fewer than k
    every = (
        torch.nn.functional.pad(similarity, missing, value=-torch.inf),
        torch.nn.functional.pad(index, missing),
    )
    similarity, index = (torch.cat(distributed.all_gather(found), 1) for found in every)
    similarity, chosen = similarity.topk(k)
    return similarity.cpu(), index.gather(1, chosen).cpu()


def data_lists(
    data: Path | None, dataset: str = "imagenet", skip_bad_images: int = 0
) -> tuple[ImageList, ImageList]:
    """Training and test images; the embedded ones where ``data`` is None. See Config for
    ``skip_bad_images``."""
    root = data or bundled.ensure()
    return decoding.leave_out(
        cifar.read_both(root, dataset) if dataset.startswith("cifar") else imagenet.read_both(root),
        skip_bad_images,
    )


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "knn",
        "data_name": config.dataset,
        "version": VERSION,
        "encoder": encoder_key,
        "data": [images.fingerprint for images in lists],
        "params": config.params(),
    }


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path | None:
    """Scores the checkpoint and returns the path of the record written; ``subject`` as in
    evaluate/lowshot.py. Under torchrun the first process writes, the others return None."""
    from protobench import features
    from protobench.checkpoints import encoders
    from protobench.runtime import distributed
    from protobench.runtime.devices import device_of

    _check(config)
    device = distributed.init(device_of(config.device))
    started = time.perf_counter()
    encoder = encoders.load(config.ckpt, config.reading)
    print(encoder.summary())
    keys = (
        encoders.load(config.ckpt, config.reading, prefer="momentum")
        if config.feature == "embedding"
        else encoder
    )
    with distributed.main_process_first():
        train, val = data_lists(config.data, config.dataset, config.skip_bad_images)
    if max(config.k) > len(train):
        raise UserError(
            f"k = {max(config.k)} neighbours asked of {len(train)} images", hint="lower --k"
        )
    how: dict[str, Any] = {
        "pooling": "embedding" if config.feature == "embedding" else "average",
        "device": device,
        "workers": config.workers,
    }
    query_MD, bank_ND = features.extract(encoder, val, **how), features.extract(keys, train, **how)
    runs = score(
        bank_ND, train.labels, query_MD, val.labels, config.k, config.sharpness, device=device
    )
    if not distributed.is_main():
        return None
    odd = [
        chance.accuracy_remark(
            round(run["value"] * len(val) / 100),
            val.labels,
            trained=not encoder.report.untouched,
        )
        for run in runs
    ]
    return records.write(
        config.results,
        unit(keys.key, (train, val), config),
        runs,
        subject=subject or records.subject_of(config.ckpt),
        metric={"name": "top-1", "unit": "%", "higher_is_better": True, "test_images": len(val)},
        checkpoint=encoder.report.to_json(),
        feature={
            "dim": int(query_MD.shape[1]),
            "pooling": config.feature,
            "copy": encoder.report.copy,
            "bank": keys.report.copy,
            **({"bank_bf16": asdict(keys.report.bf16)} if keys.report.bf16 else {}),
        },
        data=records.data_of(config.dataset, (train, val)),
        warnings=odd,
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def _check(config: Config) -> None:
    if not config.k or min(config.k) < 1 or len(set(config.k)) < len(config.k):
        raise UserError(f"--k must be different numbers of at least 1, not {config.k}")
    if not 0 < config.sharpness < float("inf"):
        raise UserError(f"--temperature must be positive, not {config.temperature}")


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    feature, data = record["feature"], record["data"]
    lines = [
        f"kNN, {record['metric']['test_images']} queries ({feature['copy']} encoder) among"
        f" {data['train_images']} training images ({feature['bank']} encoder), {feature['dim']}-D"
        f" {feature['pooling']} feature, temperature {record['unit']['params']['temperature']}"
    ]
    if data["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    lines.append("k       top-1   top-5")
    lines += [f"{run['k']:<6}{run['value']:7.1f} {run['top5']:7.1f}" for run in record["runs"]]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
