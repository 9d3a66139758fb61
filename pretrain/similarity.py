"""TP and FN similarity, as SPCL's Table 2 and Figure 2(b) measure them while a network is trained
(section 4.3.2).

TP is the similarity of an image's two views. FN (false negatives) is that of views of two different
images that belong together, which a contrastive loss pushes apart nevertheless. Both are taken
after the projection head g_c, on the training batches. Labels are used for measuring only. (The
paper says "distance", but what it prints, as its arrows show, are similarities.)

The paper's text and its released code measure differently, and verdicts depend on it:

- the text, which is judged (``tp``, ``fn``): plain cosines; images belong together if they are of
  one true class ("based on the ground-truth of down-stream tasks").
- the released code, reported beside it (``tp_release``, ``fn_release``): cosines divided by the
  temperature T; in rows with a prototype loss, images belong together if they are of one cluster.

In a trial on bundled data, a higher T raised both numbers by the text's reading and lowered both by
the code's; the paper says that TP rises and FN falls. (The code also averages batches, not pairs,
and measures the images of p and q apart.)"""

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
    """The means over an epoch, by both readings. Nothing synchronises with the device before its
    end."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.total = torch.zeros(8, dtype=torch.float64)
        """Sums and numbers as ``tp_fn`` returns them, with true classes, then with the released
        code's labels."""

    def add(
        self,
        a_NC: Tensor,
        b_NC: Tensor,
        label_N: Tensor,
        image_N: Tensor,
        pair_N: Tensor,
        cluster_N: Tensor | None = None,
    ) -> None:
        """Adds a batch: see ``tp_fn``. ``cluster_N`` are the pseudo-labels where there is a
        prototype loss."""
        text = code = tp_fn(a_NC, b_NC, label_N, image_N, pair_N)
        if cluster_N is not None:
            code = tp_fn(a_NC, b_NC, cluster_N, image_N, pair_N)
        self.total = self.total.to(text.device) + torch.cat([text, code])

    def epoch(self) -> dict[str, float]:
        """Returns ``{"tp", "fn", "tp_release", "fn_release"}``, without an FN of which no batch
        held a pair, and starts over."""
        text, code = self.total.tolist()[:4], self.total.tolist()[4:]
        self.total = torch.zeros(8, dtype=torch.float64)
        found = {}
        for suffix, (tp, views, fn, pairs), scale in (
            ("", text, 1.0),
            ("_release", code, self.temperature),
        ):
            found[f"tp{suffix}"] = round(tp / views / scale, 6)
            if pairs:
                found[f"fn{suffix}"] = round(fn / pairs / scale, 6)
        return found
