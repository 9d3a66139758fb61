"""Masks as run lengths: COCO's compressed encoding, the text that pycocotools writes."""

import numpy as np

LONGEST = 7
"""The most characters of one number: 35 bits, where pycocotools has 32."""


def decoded(text: str) -> list[int]:
    """The lengths of alternating runs of 0 and 1, down the columns, as in COCO's uncompressed
    encoding.

    A number is a sequence of characters from "0" to "o" with five bits each, lowest first; the
    sixth bit says that another character follows, and the fifth bit of the last one is the sign.
    From the fourth number on, each is the difference from the last but one. ValueError for
    malformed text, which is checked here because pycocotools trusts it and writes out of bounds."""
    codes = np.frombuffer(text.encode("utf-8", "backslashreplace"), np.uint8).astype(
        np.int64
    ) - ord("0")
    if len(odd := np.flatnonzero((codes < 0) | (codes > 63))):
        raise ValueError(f"the character {text[odd[0]]!r} does not occur in compressed run lengths")
    last = codes & 32 == 0
    if not len(codes) or not last[-1]:
        raise ValueError("compressed run lengths that are truncated")
    first = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(np.append(first, len(codes)))
    if lengths.max() > LONGEST:
        raise ValueError("compressed run lengths with a number of more than 32 bits")
    place = np.arange(len(codes)) - np.repeat(first, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, first)
    runs -= (codes[last] >> 4 & 1) << 5 * lengths
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    lengths_of_runs: list[int] = runs.tolist()
    return lengths_of_runs
