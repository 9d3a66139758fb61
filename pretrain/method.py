"""What the training loop knows of a method.

A method is one subclass of ``Method``, in a module with a function ``build(recipe, labels,
num_classes, seed)`` that returns it; labels are int64 [I], or empty where there are no images. The
loop calls every hook of every method; what a method does not need, it inherits. Its ``state_dict``
must hold everything that it needs to resume in the middle of an epoch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from protobench.checkpoints.resnet import ResNet


class Extract(Protocol):
    """The features of all images, as the loop extracts them for a method."""

    def __call__(
        self, module: nn.Module, epoch: int | None = None, dtype: type[np.floating[Any]] = ...
    ) -> np.ndarray:
        """The module's output, [I, C]: see ``Training.extract``."""


@dataclass(frozen=True)
class Networks:
    """The networks of a method that are exported. Evaluations that use embeddings need a head."""

    backbone: ResNet
    projection: nn.Module | None = None
    momentum: tuple[ResNet, nn.Module] | None = None
    """backbone and head of the momentum encoder, whose embeddings kNN and AMI use"""

    @property
    def embedding(self) -> nn.Module | None:
        """Images to embeddings: the momentum encoder where there is one, as in PCL's clustering.
        None for a method without a projection head."""
        if self.momentum is not None:
            return nn.Sequential(*self.momentum)
        if self.projection is not None:
            return nn.Sequential(self.backbone, self.projection)
        return None


class Method(nn.Module):
    """The base class of all methods."""

    num_views: ClassVar[int] = 2
    """random views of each image in a step"""

    def networks(self) -> Networks:
        """What is exported when the run is finished."""
        raise NotImplementedError

    def start_epoch(self, epoch: int, extract: Extract) -> dict[str, float]:
        """Called before an epoch; returns what its line of the log should hold."""
        return {}

    def draw_batches(self, epoch: int, steps: int) -> np.ndarray | None:
        """Image numbers of the epoch's batches, int64 [steps, batch]; None: a permutation of all
        images."""
        return None

    def loss(self, views: list[Tensor], index_N: Tensor) -> Tensor:
        """The loss of one step. ``index_N`` are the image numbers of the global batch; ``views``,
        [n, 3, H, W] each, show this process's share of it."""
        raise NotImplementedError

    def end_epoch(self) -> dict[str, float]:
        """Called after an epoch; returns more for its line of the log."""
        return {}

    def renewed(self) -> Iterable[nn.Parameter]:
        """Parameters that ``start_epoch`` re-initialises, whose momentum the optimiser then
        forgets."""
        return ()

    def unscheduled(self) -> Iterable[nn.Parameter]:
        """Parameters that are trained at the peak learning rate throughout."""
        return ()
