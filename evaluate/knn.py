"""Weighted k-nearest-neighbour classification on ImageNet: PCL's Table 4.

Examples:

    python evaluate/knn.py --ckpt pcl_v1.pth.tar --data /data/imagenet
    python evaluate/knn.py --ckpt dino.pth --data /data/imagenet --feature pooled --k 10 20 100 200
    python evaluate/knn.py --ckpt encoder.safetensors                    # no data at hand: the embedded images

Every training image within the k nearest votes for its class with weight exp(v.v' / temperature), both features of unit norm
(section 4.2; Wu et al., CVPR 2018).

  --feature embedding  the projection head's output, v and v' of the paper (128-D); temperature 0.1, its training's. The default.
                       The neighbours are momentum features, as in the paper, where the checkpoint has a momentum encoder.
  --feature pooled     the backbone's pooled feature (2048-D) on both sides, as in later papers; temperature 0.07, theirs.

The paper states neither the feature nor the temperature, and its code has no kNN. Exact: no index, no approximation; the
features are gone through in blocks, so memory does not grow with the data.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from protobench import cli, imagenet, mini, records
from protobench.errors import UserError
from protobench.images import ImageList
from protobench.layouts import Reading
from protobench.progress import progress

VERSION = 1
"""Raise when a score changes for equal features and parameters."""

QUERIES, BANK = 384, 65_536
"""Rows and columns of a block of similarities: 100 MB."""


@dataclass(frozen=True)
class Config:
    """Weighted k-nearest-neighbour classification."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder (train/ and val/), or the folder that holds it as imagenet/; without it the embedded images"""
    k: tuple[int, ...] = (20, 200)
    """neighbours that vote; all in one pass"""
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is compared"""
    temperature: float | None = None
    """default 0.1 for the embedding, 0.07 for the pooled feature"""
    device: str = "auto"
    workers: int = 4
    """processes that read images"""
    results: Path = Path("results/scores")
    """where the record is written"""
    reading: Reading = field(default_factory=Reading)

    @property
    def sharpness(self) -> float:
        """The temperature used."""
        return (0.1 if self.feature == "embedding" else 0.07) if self.temperature is None else self.temperature

    def params(self) -> dict[str, Any]:
        """What determines the scores of a checkpoint on given images."""
        return {"k": self.k, "feature": self.feature, "temperature": self.sharpness}


def score(bank_ND: np.ndarray, bank_labels: np.ndarray, query_MD: np.ndarray, labels: np.ndarray, ks: tuple[int, ...],
          temperature: float, *, device: str = "cpu") -> list[dict[str, Any]]:
    """One run per k: ``{"k", "draw", "value", "top5"}``, in percent. Rows are unit vectors, labels int [N] and [M]."""
    import torch

    classes = int(max(bank_labels.max(), labels.max())) + 1
    bank_label_N = torch.from_numpy(bank_labels).to(device)
    hits: dict[int, list[tuple[int, int]]] = {k: [] for k in ks}
    starts = range(0, len(query_MD), QUERIES)
    for start in progress(starts, desc="neighbours", unit=f" x {QUERIES} queries", total=len(starts)):
        query_QD = torch.from_numpy(np.ascontiguousarray(query_MD[start : start + QUERIES])).to(device)
        similarity_QK, index_QK = _nearest(query_QD, bank_ND, max(ks), device)
        weight_QK = ((similarity_QK - similarity_QK[:, :1]) / temperature).exp()  # of the nearest: 1, so none overflows
        neighbour_QK = bank_label_N[index_QK]
        truth_Q1 = torch.from_numpy(labels[start : start + QUERIES]).to(device)[:, None]
        for k in ks:
            vote_QC = weight_QK.new_zeros(len(query_QD), classes).scatter_add_(1, neighbour_QK[:, :k], weight_QK[:, :k])
            best_QR = vote_QC.topk(min(5, classes))
            right_QR = (best_QR.indices == truth_Q1) & (best_QR.values > 0)  # a class without a vote is no answer
            hits[k].append((int(right_QR[:, 0].sum()), int(right_QR.sum())))
    share = 100 / len(query_MD)
    return [{"k": k, "draw": 0, "value": round(share * sum(top1 for top1, _ in hits[k]), 6),
             "top5": round(share * sum(top5 for _, top5 in hits[k]), 6)} for k in ks]


def _nearest(query_QD: Any, bank_ND: np.ndarray, k: int, device: str) -> tuple[Any, Any]:
    """The k largest similarities of each query with the bank, in falling order, and where they are: [Q, k] each."""
    import torch

    best = None
    for start in range(0, len(bank_ND), BANK):
        block_BD = torch.from_numpy(np.ascontiguousarray(bank_ND[start : start + BANK])).to(device)
        value, index = (query_QD @ block_BD.T).topk(min(k, len(block_BD)))
        index += start
        if best is not None:
            value, index = torch.cat([best[0], value], 1), torch.cat([best[1], index], 1)
            value, chosen = value.topk(min(k, value.shape[1]))
            index = index.gather(1, chosen)
        best = value, index
    assert best is not None
    return best


def data_lists(data: Path | None, dataset: str = "imagenet") -> tuple[ImageList, ImageList]:
    """Training and validation images; the embedded ones where ``data`` is None."""
    return imagenet.read_both(data or mini.ensure())


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {"evaluation": "knn", "data_name": "imagenet", "version": VERSION, "encoder": encoder_key,
            "data": [images.fingerprint for images in lists], "params": config.params()}


def evaluate(config: Config, subject: dict[str, Any] | None = None) -> Path:
    """Scores the checkpoint and returns the path of the record written; ``subject`` as in evaluate/lowshot.py."""
    from protobench import checkpoints, features
    from protobench.devices import device_of

    _check(config)
    started = time.perf_counter()
    encoder = checkpoints.load(config.ckpt, config.reading)
    print(encoder.summary())
    keys = checkpoints.load(config.ckpt, config.reading, prefer="momentum" if config.feature == "embedding" else None)
    train, val = data_lists(config.data)
    if max(config.k) > len(train):
        raise UserError(f"k = {max(config.k)} neighbours asked of {len(train)} images", hint="lower --k")
    device = device_of(config.device)
    how: dict[str, Any] = {"pooling": "embedding" if config.feature == "embedding" else "average", "device": device,
                           "workers": config.workers}
    query_MD = features.unit_norm(features.extract(encoder, val, **how))
    bank_ND = features.unit_norm(features.extract(keys, train, **how))
    runs = score(bank_ND, train.labels, query_MD, val.labels, config.k, config.sharpness, device=device)
    return records.write(
        config.results, unit(keys.key, (train, val), config), runs,
        subject=subject or records.subject_of(config.ckpt),
        metric={"name": "top-1", "unit": "%", "higher_is_better": True, "test_images": len(val)}, checkpoint=encoder.account,
        feature={"dim": int(query_MD.shape[1]), "pooling": config.feature, "copy": encoder.account["copy"],
                 "bank": keys.account["copy"]},
        data={"name": "imagenet", "embedded": config.data is None, "classes": len(train.classes), "train_images": len(train)},
        cost={"seconds": round(time.perf_counter() - started, 2)})


def _check(config: Config) -> None:
    if not config.k or min(config.k) < 1 or len(set(config.k)) < len(config.k):
        raise UserError(f"--k must be different numbers of at least 1, not {config.k}")
    if not 0 < config.sharpness < float("inf"):
        raise UserError(f"--temperature must be positive, not {config.temperature}")


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    feature, data = record["feature"], record["data"]
    lines = [f"kNN, {record['metric']['test_images']} queries ({feature['copy']} encoder) among {data['train_images']} training "
             f"images ({feature['bank']} encoder), {feature['dim']}-D {feature['pooling']} feature, "
             f"temperature {record['unit']['params']['temperature']}"]
    if data["embedded"]:
        lines.append("EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the real ones)")
    lines.append("k       top-1   top-5")
    lines += [f"{run['k']:<6}{run['value']:7.1f} {run['top5']:7.1f}" for run in record["runs"]]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    config = cli.parse(Config, __doc__ or "")
    path = evaluate(config)
    print(report(records.read(path)))
    print(f"record: {path}")
    return cli.SAME


if __name__ == "__main__":
    cli.run(main)
