"""Checkpoints: what is in one, getting a published one, writing one for other programs. Data: is it
complete. The cache: what it holds. The installation: does it work.

Examples:

    python -m protobench inspect moco_v1_200ep_pretrain.pth.tar  # what an evaluation would load
    python -m protobench layouts  # where each code base keeps its backbone
    python -m protobench fetch  # the published files that are known
    python -m protobench fetch pcl-v2  # downloads it into checkpoints/
    python -m protobench export encoder.safetensors out.pth --layout detectron2
    python -m protobench convert --trust old.pth.tar out.safetensors  # runs its code; rarely needed
    python -m protobench check-data /data  # counts, classes, every image decoded; resumable
    python -m protobench cache  # features, decoded images, bundled data: sizes and last use
    python -m protobench cache --trim --older-than 30d --max-size 50GB --dry-run
    python -m protobench keep-crops /data  # centre crops decoded once: 200 GB for ImageNet
    python -m protobench doctor  # what this machine and its installation lack

export and convert take the flags of an evaluation too: --weights, --prefix, --normalisation, …
"""

import sys

from protobench.runtime import cli


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["doctor"]:  # before any package is imported, for one may be broken
        from protobench import doctor

        return doctor.main(sys.argv[2:])
    from protobench.commands import COMMANDS

    return cli.dispatch(COMMANDS, __doc__ or "", elsewhere=("doctor",))


def script() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    script()
