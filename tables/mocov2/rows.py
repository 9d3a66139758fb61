"""The encoders of MoCo v2's tables.

Mini tier: what the paper changes from one row to the next is changed in the mini tier's MoCo in the
same way, and nothing is tuned for a row. So its schedule, a cosine elsewhere in this suite, is the
steps of MoCo v1 (x 0.1 at 60 and 80 % of the epochs) in the rows without "cos"; the temperature is
the paper's 0.2 with an MLP, and the mini tier's 0.1 without; "aug+" is the blur with the paper's
probability; rate and jitter, which no row changes, stay. Epochs are a tenth of the paper's.
SimCLR's large batches are the paper's 32 and 16 times its small one, which would leave no step an
epoch or one: here both are four times it, with the rate in proportion as in SimCLR's Figure 9."""

from dataclasses import replace
from typing import Any

from pretrain.recipes import moco, simclr
from tables.engine import encoders
from tables.engine.schema import Row

MOCO_HOURS, END_TO_END_HOURS = 53 * 8, 65 * 8
"""V100-hours of 200 epochs with batches of 256 (Table 3)."""
PROBE = (("probe", "moco"),)
"""The linear probe of MoCo's code: the paper has "the same hyper-parameters and codebase as
MoCo"."""
STEPS: dict[str, Any] = {"schedule": "step", "milestones": (12, 16)}


def _moco(
    name: str,
    title: str,
    *,
    mlp: bool = False,
    aug: bool = False,
    cos: bool = False,
    longer: int = 1,
) -> Row:
    """MoCo v1 with what the paper adds to it, trained ``longer`` times as long."""
    mini, paper = moco.MINI, moco.V1
    if mlp:
        mini, paper = (replace(of, mlp=True, temperature=0.2) for of in (mini, paper))
    if aug:
        mini = replace(mini, augment=replace(mini.augment, blur=moco.V2_AUGMENT.blur))
        paper = replace(paper, augment=moco.V2_AUGMENT)
    mini = replace(
        mini,
        train=replace(mini.train, epochs=20 * longer, **({} if cos else STEPS)),
    )
    schedule = moco.V2.train.schedule if cos else paper.train.schedule
    paper = replace(paper, train=replace(paper.train, epochs=200 * longer, schedule=schedule))
    source = "53 h on 8 V100 for 200 epochs (Table 3)"
    return Row(
        name,
        title,
        mini,
        paper,
        settings=PROBE,
        mini_seconds=33 * longer,
        gpu_hours=MOCO_HOURS * longer,
        gpu_hours_source=source if longer == 1 else f"{longer} x {source}",
    )


V1 = _moco("moco-v1", "MoCo v1")
MLP = _moco("moco-mlp", "(a) MLP", mlp=True)
AUG = _moco("moco-aug", "(b) aug+", aug=True)
MLP_AUG = _moco("moco-mlp-aug", "(c) MLP, aug+", mlp=True, aug=True)
V2 = _moco("moco-v2", "(d) MLP, aug+, cos", mlp=True, aug=True, cos=True)
V2_LONG = _moco("moco-v2-800", "(e) as (d), 800 epochs", mlp=True, aug=True, cos=True, longer=4)


def _simclr(name: str, title: str, *, batch: int, longer: int = 1) -> Row:
    """SimCLR with large batches; ``batch`` is the paper's."""
    mini, paper = simclr.MINI.train, simclr.PAPER.train
    source = "65 h on 8 V100 for 200 epochs in batches of 256 (Table 3, end-to-end)"
    return Row(
        name,
        title,
        replace(
            simclr.MINI,
            train=replace(mini, epochs=20 * longer, batch_size=4 * mini.batch_size, lr=4 * mini.lr),
        ),
        replace(
            simclr.PAPER,
            train=replace(
                paper,
                epochs=200 * longer,
                batch_size=batch,
                lr=paper.lr * batch / paper.batch_size,
            ),
        ),
        settings=(("probe", "simclr"),),
        mini_seconds=46 * longer,
        gpu_hours=END_TO_END_HOURS * longer,
        gpu_hours_source=source if longer == 1 else f"{longer} x {source}",
    )


SIMCLR = replace(
    encoders.SIMCLR,
    settings=(("probe", "simclr"),),
    gpu_hours=END_TO_END_HOURS,
    gpu_hours_source="65 h on 8 V100 (Table 3, end-to-end)",
)
SIMCLR_LARGE = _simclr("simclr-8192", "SimCLR, batches of 8192", batch=8192)
SIMCLR_LONG = _simclr("simclr-1000", "SimCLR, 1000 epochs", batch=4096, longer=5)
