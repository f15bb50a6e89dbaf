"""What the training loop asks of every network."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Trainable(nn.Module, ABC):
    """A network with a backbone that can be kept, a scaling that travels with it, and a loss in terms.

    ``scaling`` is a frozen dataclass of numbers (and tuples of them): photo-electrons to input and output to
    physical units.
    """

    backbone: nn.Module
    scaling: Any

    @abstractmethod
    def loss(self, photons: Tensor, targets: Any) -> dict[str, Tensor]:
        """Terms of the loss of images (B, C, H, W) in photo-electrons, each a scalar."""

    def freeze(self) -> None:
        """Keep the backbone as it is in the training to come."""
        self.backbone.requires_grad_(False)
