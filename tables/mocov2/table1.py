"""MoCo v2, Table 1: what each change of MoCo does, on ImageNet and in detection."""

import math
from pathlib import Path

from tables.engine import margins
from tables.engine.encoders import DATA, RANDOM, SUPERVISED
from tables.engine.schema import Claim, Column, Table
from tables.mocov2 import PAPER, rows

PRETRAINING_SD = 0.2
"""Five pretrainings: MoCo v1 60.6 to 61.1, MoCo v2 67.3 to 67.7 on ImageNet (MoCo's README). Of
detection nothing is known, and it is taken to spread by as much."""
DETECTOR_SD = {"AP50": 0.2, "AP": 0.2, "AP75": 0.4}
"""Between trainings of a detector (MoCo's detection/README)."""

IMAGENET = Column(
    "ImageNet",
    "ImageNet",
    "linear probe",
    "linear",
    "imagenet",
    margin=0.5,
    delta=margins.NEGLIGIBLE,
    noise=PRETRAINING_SD,
)


def _detection(title: str, value: str, margin: float) -> Column:
    return Column(
        title,
        "VOC detection",
        title,
        "detection_c4",
        "voc07+12",
        margin=margin,
        value=value,
        delta=margins.NEGLIGIBLE,
        noise=math.hypot(DETECTOR_SD[title] / math.sqrt(5), PRETRAINING_SD),
    )


DETECTION = (
    _detection("AP50", "value", 0.4),
    _detection("AP", "ap", 0.4),
    _detection("AP75", "ap75", 0.5),
)
ALL = (IMAGENET, *DETECTION)
BETTER = (
    'section 1: "when used with MoCo they lead to better image classification and object detection'
    ' transfer learning results"'
)
ALONE = (
    'section 3: "its detection accuracy is higher than that of using the MLP alone, Table 1(b) vs.'
    ' (a), despite much lower linear classification accuracy"'
)

TABLE = Table(
    name="mocov2-table1",
    title="MoCo with an MLP, more augmentation and a cosine schedule",
    paper=PAPER,
    where="Table 1",
    source_note="Typed from section 3.",
    numbers_csv=Path(__file__).with_suffix(".csv"),
    rows=(
        RANDOM,
        SUPERVISED,
        rows.V1,
        rows.MLP,
        rows.AUG,
        rows.MLP_AUG,
        rows.V2,
        rows.V2_LONG,
    ),
    columns=ALL,
    claims=(
        Claim(
            "MLP and aug+ > MoCo v1, mean over ImageNet and detection",
            ("moco-mlp-aug",),
            ("moco-v1",),
            ALL,
            source=BETTER,
            endpoint="mean",
            primary=True,
        ),
        Claim(
            "MLP and aug+ > MoCo v1 in all detection metrics",
            ("moco-mlp-aug",),
            ("moco-v1",),
            DETECTION,
            source=BETTER,
        ),
        Claim(
            "MLP > MoCo v1 on ImageNet",
            ("moco-mlp",),
            ("moco-v1",),
            (IMAGENET,),
            source=(
                'section 3: "pre-training with the MLP head improves from 60.6% to 62.9%; switching'
                ' to the optimal value for MLP (0.2), the accuracy increases to 66.2%"'
            ),
        ),
        Claim(
            "aug+ > MoCo v1 on ImageNet",
            ("moco-aug",),
            ("moco-v1",),
            (IMAGENET,),
            source=(
                'section 3: "The extra augmentation alone (i.e., no MLP) improves the MoCo baseline'
                ' on ImageNet by 2.8% to 63.4%"'
            ),
        ),
        Claim(
            "MLP and aug+ > MLP on ImageNet",
            ("moco-mlp-aug",),
            ("moco-mlp",),
            (IMAGENET,),
            source=(
                'section 3: "With the MLP, the extra augmentation boosts ImageNet accuracy to'
                ' 67.3%"'
            ),
        ),
        Claim("MLP > aug+ on ImageNet", ("moco-mlp",), ("moco-aug",), (IMAGENET,), source=ALONE),
        Claim(
            "aug+ > MLP in detection, mean over the metrics",
            ("moco-aug",),
            ("moco-mlp",),
            DETECTION,
            source=ALONE,
            endpoint="mean",
        ),
        Claim(
            "800 epochs > 200 on ImageNet",
            ("moco-v2-800",),
            ("moco-v2",),
            (IMAGENET,),
            source=(
                'section 3: "With 800-epoch pre-training, MoCo v2 achieves 71.1%"; Table 1(d, e)'
            ),
        ),
        Claim(
            "MoCo v1 and v2 > Supervised in detection, mean over the metrics",
            ("moco-v1", "moco-v2", "moco-v2-800"),
            ("supervised",),
            DETECTION,
            source=(
                'section 1, of MoCo: "unsupervised pre-training can surpass its'
                ' ImageNet-supervised counterpart in multiple detection and segmentation tasks";'
                " Table 1"
            ),
            endpoint="mean",
        ),
    ),
    paper_runs=5,
    expected_data={
        "imagenet": DATA["imagenet"],
        "voc07+12": {"classes": 20, "test images": 4952, "training images": 16_551},
    },
    unit={"ImageNet": "top-1 (%)", "VOC detection": "VOC07 test (%)"},
    margin_reason=(
        "fixed before any run on real data. ImageNet: 2.9 times the noise, 0.2 over five"
        " pretrainings by MoCo's authors; below a third of the lead of MLP and aug+ over MoCo v1,"
        " 6.7. Detection: a third of that lead (1.0, 1.3, 1.3) is less than twice the noise of a"
        " mean of five trainings on one encoder, which the margins are instead: agreement does not"
        " tell the rows apart"
    ),
    notes=(
        (
            "The paper has no Random row. Its 76.5 for Supervised is not of torchvision's weights"
            " (76.1), whose recipe ours is; as controls only their order is asked for."
        ),
        (
            "ImageNet: MoCo's rows have its authors' probe (a rate of 30), Random and Supervised"
            " PCL's. The paper's numbers are one pretraining each."
        ),
        (
            "Detection: Faster R-CNN C4 by MoCo's configuration, 24 000 batches of 16, everything"
            " trains; five trainings. MMDetection in place of Detectron2; AP over 11 recalls, as"
            " Detectron2 scores VOC07 (evaluate/detection_c4.py)."
        ),
        (
            "The note says that only blur is added; its code changes the jitter, too (hue 0.1"
            " instead of 0.4, applied with probability 0.8), and so do the rows with aug+."
        ),
        (
            "The sentence that detection gains less than ImageNet is no claim of a row's lead, and"
            " is not judged. Nor is cos: the paper says of it that SimCLR has it."
        ),
        (
            "Mini tier: MoCo v1 is the mini tier's MoCo with the paper's steps in place of its"
            " cosine; each row has the paper's change and nothing is tuned for it"
            " (tables/mocov2/rows.py). A blur of up to two pixels on strokes of two pixels is more"
            " than on photographs. Epochs are a tenth of the paper's. PCL's probe for all rows;"
            " detectors on 600 scenes, 200 batches of 8, one training per pretraining."
        ),
    ),
)
