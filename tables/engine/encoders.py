"""The encoders that several tables score, each with its recipes and what training it costs."""

from dataclasses import replace

from pretrain.recipes import moco, pcl, simclr, supervised, untrained
from tables.engine.schema import Row

RANDOM = Row(
    "random",
    "Random",
    untrained.MINI,
    untrained.PAPER,
    untrained.SMALL,
    untrained.SMALL_GPU,
    control="lower",
    mini_seconds=1,
)
SUPERVISED = Row(
    "supervised",
    "Supervised",
    supervised.MINI,
    supervised.PAPER,
    supervised.SMALL,
    supervised.SMALL_GPU,
    control="upper",
    mini_seconds=14,
    gpu_hours=100,
    gpu_hours_source=(
        "estimate: 90 epochs at 367 images/s per V100, fp32 (NVIDIA DeepLearningExamples)"
    ),
)
MOCO = Row(
    "moco",
    "MoCo",
    moco.MINI,
    moco.V1,
    moco.SMALL,
    moco.SMALL_GPU,
    mini_seconds=33,
    gpu_hours=424,
    gpu_hours_source="53 h on 8 V100 (MoCo's README)",
)
PCL = Row(
    "pcl",
    "PCL",
    pcl.MINI,
    pcl.V1,
    pcl.SMALL,
    pcl.SMALL_GPU,
    mini_seconds=45,
    gpu_hours=672,
    gpu_hours_source="about a week on 4 V100 (PCL's author, issue 2 of its repository)",
)
PCL_FIXED = replace(
    PCL,
    name="pcl-fixed",
    title="PCL, fixed concentration",
    mini=replace(pcl.MINI, concentration="fixed"),
    paper=replace(pcl.V1, concentration="fixed"),
    small=None,
    small_gpu=None,
)
SIMCLR = Row(
    "simclr",
    "SimCLR",
    simclr.MINI,
    simclr.PAPER,
    simclr.SMALL,
    simclr.SMALL_GPU,
    mini_seconds=46,
    gpu_hours=424,
    gpu_hours_source="estimate: as MoCo",
)
PCL_V2 = Row(
    "pcl-v2",
    "PCL v2",
    pcl.MINI_V2,
    pcl.V2,
    pcl.SMALL_V2,
    pcl.SMALL_GPU_V2,
    mini_seconds=45,
    gpu_hours=672,
    gpu_hours_source="as PCL",
)

DATA = {
    "imagenet": {"classes": 1000, "test images": 50_000, "training images": 1_281_167},
    "voc07": {"classes": 20, "test images": 4952, "training images": 5011},
    "places205": {"classes": 205, "test images": 20_500, "training images": 2_448_873},
    "cifar10": {"classes": 10, "test images": 10_000, "training images": 50_000},
    "cifar10-10k": {"classes": 10, "test images": 10_000, "training images": 10_000},
    "cifar100": {"classes": 100, "test images": 10_000, "training images": 50_000},
}
"""What the data sets of the papers hold."""
