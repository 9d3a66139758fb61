"""TP and FN similarity, as SPCL's Table 2 and Figure 2(b) measure them while a network is trained
(section 4.3.2).

TP is the cosine of an image's two views. FN (false negatives) is the cosine of views of two
different images of one true class, which a contrastive loss pushes apart nevertheless. Both are
taken after the projection head g_c, on the training batches. Labels are used for measuring only.
(The paper says "distance", but what it prints, as its arrows show, are similarities.)"""

import torch
from torch import Tensor

from pretrain.precision import in_fp32


@torch.no_grad()
@in_fp32
def tp_fn(a_NC: Tensor, b_NC: Tensor, label_N: Tensor, image_N: Tensor, pair_N: Tensor) -> Tensor:
    """Sums of cosines and numbers of pairs, float64 [4]: TP, its pairs, FN, its pairs. The two
    views have unit norm.

    Images drawn as one pair (equal ``pair_N``) are no false negatives: SPCL draws an anchor's
    partner because it lies near. In the paper's batches it is one of fifty images of the anchor's
    class, in those of the bundled data it would be one of six."""
    z, label, image, pair = (
        torch.cat([a_NC, b_NC]),
        label_N.repeat(2),
        image_N.repeat(2),
        pair_N.repeat(2),
    )
    false_negative = (label[:, None] == label) & (image[:, None] != image) & (pair[:, None] != pair)
    s = z @ z.T
    sums = (
        (a_NC * b_NC).sum(),
        s.new_full((), len(a_NC)),
        (s * false_negative).sum(),
        false_negative.sum(),
    )
    return torch.stack([number.double() for number in sums])


class Similarity:
    """The means over an epoch. Nothing synchronises with the device before its end."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)

    def add(self, *batch: Tensor) -> None:
        """Adds a batch: the arguments of ``tp_fn``."""
        sums = tp_fn(*batch)
        self.total = self.total.to(sums.device) + sums

    def epoch(self) -> dict[str, float]:
        """Returns ``{"tp", "fn"}``, without fn where no batch held two images of a class, and
        starts over."""
        tp, views, fn, pairs = self.total.tolist()
        self.total = torch.zeros((), dtype=torch.float64)
        return {"tp": round(tp / views, 6), **({"fn": round(fn / pairs, 6)} if pairs else {})}
