"""Which test images an encoder classified rightly: one bit per image, as text, in the field
``right`` of a record's run. By them two encoders are compared image by image.

``right`` maps the names of the run's accuracies to bits in the order of the test list, whose
fingerprint the record's ``unit`` holds: ``{"value": ..., "right": {"value": "/9sC..."}}``. They
are not compressed: of accuracies between 50 and 90 %, that saves little."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from protobench.runtime.errors import UserError


def pack(right_N: np.ndarray) -> str:
    """Return bool [N] as text: 8 images a byte, the first in the highest bit, in base64."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode("ascii")


def unpack(text: str, images: int) -> np.ndarray:
    """Return the bool [images] that ``pack`` wrote. Raises UserError if the text holds another
    number of bytes."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error:
        packed = np.empty(0, dtype=np.uint8)
    if len(packed) != -(-images // 8):
        raise UserError(f"outcomes that do not belong to {images} test images")
    return np.unpackbits(packed, count=images).astype(bool)


def of_run(run: Mapping[str, Any], images: int) -> dict[str, np.ndarray]:
    """Return the outcomes of a run of a record, bool [images] for each accuracy that has them;
    empty where there are none. Raises UserError if they do not give the accuracy in the run."""
    found = {what: unpack(text, images) for what, text in run.get("right", {}).items()}
    for what, right_N in found.items():
        if abs(100 * right_N.mean() - run[what]) > 1e-4:
            raise UserError(
                f"the outcomes of the images give {100 * right_N.mean():.2f} %, the run says"
                f" {run[what]:.2f} %"
            )
    return found
