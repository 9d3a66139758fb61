"""Adjusted mutual information between k-means clusters of the training images and their classes:
PCL's Table 7.

Examples:

    python evaluate/ami.py --ckpt pcl_v1.pth.tar --data /data/imagenet --num-clusters 25000
    python evaluate/ami.py --ckpt moco_v1_200ep.pth.tar --data /data/imagenet --num-clusters 25000
    50000 100000
    python evaluate/ami.py --ckpt encoder.safetensors  # no data at hand: the embedded images

Features of centre crops of all training images, divided by their norm, are clustered as in PCL's
training (faiss, 20 iterations, the best of 5 starts). Printed are AMI with the arithmetic mean of
the entropies, scikit-learn's default since 0.22 and the one to compare with the paper, and with
their maximum, the default before: the paper's 0.410 would read 0.317 there. Also NMI (arithmetic),
ARI and purity.

Which feature the paper clusters is not stated. ``--feature embedding`` (the default where the
checkpoint has one) is what PCL's training clusters: the projection head's output, of the momentum
encoder where there is one. ``--feature pooled`` is the backbone's pooled feature, which every
checkpoint has."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from protobench import records
from protobench.checkpoints.layouts import LoadOptions
from protobench.data import decoding, imagenet
from protobench.data.image_list import ImageList
from protobench.data.synthetic import bundled
from protobench.mutual_information import agreement
from protobench.runtime import cli
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

VERSION = 1
"""Raise when a score changes for equal features and parameters."""


@dataclass(frozen=True)
class Config:
    """Adjusted mutual information of k-means clusters."""

    ckpt: Annotated[Path, tyro.conf.arg(aliases=["--pretrained"])]
    """checkpoint to score, in any layout that protobench/checkpoints/layouts.py lists"""
    data: Path | None = None
    """ImageNet's folder (train/<wnid>/…), or the folder that holds it as imagenet/; without it the
    embedded images"""
    num_clusters: tuple[int, ...] = ()
    """K, several at once; default 25000, on embedded data 100"""
    feature: Literal["embedding", "pooled"] = "embedding"
    """what is clustered"""
    iterations: int = 20
    """of k-means"""
    restarts: int = 5
    """starts, of which the one with the least inertia counts"""
    seed: int = 0
    """of the starts"""
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
    def clusters(self) -> tuple[int, ...]:
        """The numbers of clusters tried."""
        return self.num_clusters or ((100,) if bundled.is_used(self.data) else (25_000,))

    def params(self) -> dict[str, Any]:
        """What determines the scores of a checkpoint on given images."""
        return {
            "num_clusters": self.clusters,
            "feature": self.feature,
            "iterations": self.iterations,
            "restarts": self.restarts,
            "seed": self.seed,
        }


def score(
    x_ND: np.ndarray, labels: np.ndarray, config: Config, *, gpu: bool = False
) -> list[dict[str, Any]]:
    """One run per K: ``{"k", "draw", "value", "ami_max", "nmi", "ari", "purity", "non_empty"}``,
    all but counts from 0 to 1.

    x_ND are unit vectors; ``value`` is the AMI with arithmetic mean.
    """
    from protobench.kmeans import kmeans

    runs = []
    for k in progress(config.clusters, desc="k-means", unit=" K", total=len(config.clusters)):
        found = kmeans(
            x_ND, k, seed=config.seed, niter=config.iterations, nredo=config.restarts, gpu=gpu
        ).assignment
        scores = {name: round(value, 6) for name, value in agreement(found, labels).items()}
        runs.append(
            {
                "k": k,
                "draw": 0,
                "value": scores.pop("ami"),
                **scores,
                "non_empty": len(np.unique(found)),
            }
        )
    return runs


def data_lists(
    data: Path | None, dataset: str = "imagenet", skip_bad_images: int = 0
) -> tuple[ImageList]:
    """The training images; the embedded ones where ``data`` is None. See Config for
    ``skip_bad_images``."""
    return decoding.leave_out((imagenet.read(data or bundled.ensure(), "train"),), skip_bad_images)


def unit(encoder_key: str, lists: tuple[ImageList, ...], config: Config) -> dict[str, Any]:
    """What a record is found by."""
    return {
        "evaluation": "ami",
        "data_name": "imagenet",
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

    _check(config)
    started = time.perf_counter()
    embedding = config.feature == "embedding"
    device = distributed.init(device_of(config.device))
    encoder = encoders.load(config.ckpt, config.reading, prefer="momentum" if embedding else None)
    print(encoder.summary())
    with distributed.main_process_first():
        (train,) = data_lists(config.data, skip_bad_images=config.skip_bad_images)
    if max(config.clusters) > len(train):
        raise UserError(
            f"{max(config.clusters)} clusters asked of {len(train)} images",
            at=train.root,
            hint="lower --num-clusters",
        )
    x_ND = features.extract(
        encoder,
        train,
        pooling="embedding" if embedding else "average",
        device=device,
        workers=config.workers,
    )
    if not distributed.is_main():
        return None
    runs = score(features.unit_norm(x_ND), train.labels, config, gpu=device != "cpu")
    return records.write(
        config.results,
        unit(encoder.key, (train,), config),
        runs,
        subject=subject or records.subject_of(config.ckpt),
        metric={"name": "AMI", "unit": "", "higher_is_better": True, "test_images": len(train)},
        checkpoint=encoder.report.to_json(),
        feature={
            "dim": int(x_ND.shape[1]),
            "pooling": config.feature,
            "copy": encoder.report.copy,
        },
        data=records.data_of("imagenet", (train,)),
        cost={"seconds": round(time.perf_counter() - started, 2)},
    )


def _check(config: Config) -> None:
    ks = config.num_clusters
    if min(ks, default=1) < 1 or len(set(ks)) < len(ks):
        raise UserError(f"--num-clusters must be different numbers of at least 1, not {ks}")
    if config.iterations < 1 or config.restarts < 1:
        raise UserError("--iterations and --restarts are at least 1")


def report(record: dict[str, Any]) -> str:
    """The record as a few lines for the terminal."""
    feature, data = record["feature"], record["data"]
    lines = [
        f"k-means of {data['train_images']} training images against {data['classes']} classes;"
        f" {feature['dim']}-D {feature['pooling']} feature of the {feature['copy']} encoder"
    ]
    if data["embedded"]:
        lines.append(
            "EMBEDDED DATA: these numbers are not comparable with any paper's (give --data for the"
            " real ones)"
        )
    lines.append("K         AMI   AMI(max)   NMI    ARI    purity   non-empty")
    lines += [
        f"{run['k']:<8}{run['value']:6.3f}{run['ami_max']:9.3f}{run['nmi']:8.3f}{run['ari']:7.3f}{run['purity']:9.3f}"
        f"{run['non_empty']:11d}"
        for run in record["runs"]
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    return cli.scored(Config, __doc__ or "", evaluate, report)


if __name__ == "__main__":
    cli.run(main)
