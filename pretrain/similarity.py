"""TP and FN similarity, as SPCL's Table 2 and Figure 2(b) measure them while a network is trained
(section 4.3.2).

TP: cosine of an image's two views. FN, false negatives: cosine of views of two different images of
one true class, which a contrastive loss pushes apart nevertheless. Both after the projection head
g_c, on the batches as they are trained on. Labels are used for measuring only. (The paper says
"distance"; what it prints, as its arrows show, are similarities.)"""

import torch
from torch import Tensor

from pretrain.precision import in_fp32


@torch.no_grad()
@in_fp32
def tp_fn(a_NC: Tensor, b_NC: Tensor, label_N: Tensor, image_N: Tensor, draw_N: Tensor) -> Tensor:
    """Sums and numbers of pairs, float64 [4]: TP, its pairs, FN, its pairs. Two views of unit norm.

    Images of one ``draw`` are no pair: SPCL draws an anchor's partner because it lies near. In the
    paper's batches it is one of fifty images of the anchor's class, in the embedded ones it would
    be one of six."""
    z, label, image, draw = (
        torch.cat([a_NC, b_NC]),
        label_N.repeat(2),
        image_N.repeat(2),
        draw_N.repeat(2),
    )
    false_negative = (label[:, None] == label) & (image[:, None] != image) & (draw[:, None] != draw)
    s = z @ z.T
    found = (
        (a_NC * b_NC).sum(),
        s.new_full((), len(a_NC)),
        (s * false_negative).sum(),
        false_negative.sum(),
    )
    return torch.stack([number.double() for number in found])


class Similarity:
    """The means over an epoch; nothing waits for the device before its end."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)

    def add(self, *batch: Tensor) -> None:
        """A batch, as for ``tp_fn``."""
        found = tp_fn(*batch)
        self.total = self.total.to(found.device) + found

    def epoch(self) -> dict[str, float]:
        """``{"tp", "fn"}``, without fn where no batch held two images of a class; starts anew."""
        tp, views, fn, pairs = self.total.tolist()
        self.total = torch.zeros((), dtype=torch.float64)
        return {"tp": round(tp / views, 6), **({"fn": round(fn / pairs, 6)} if pairs else {})}
