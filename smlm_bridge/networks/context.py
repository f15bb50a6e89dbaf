"""The dilated context module of DeepSTORM3D (Nehme et al. 2020): a wide view at camera resolution."""

from typing import Final

import torch
from torch import Tensor, nn

_SLOPE: Final = 0.2


def context_block(inputs: int, outputs: int, *, dilation: int = 1) -> nn.Sequential:
    """3 x 3 convolution, leaky ReLU, batch norm, in this order."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.LeakyReLU(_SLOPE), nn.BatchNorm2d(outputs))


class DilatedContext(nn.Module):
    """Images (B, inputs, H, W) to features (B, width + inputs, H, W); the image itself enters every block again.

    ``dilations`` names the blocks: 1, 1, 2, 4, 8, 16 for PSFs as wide as the Tetrapod, 1, 1, 2, 4, 1, 1 for small
    ones. Blocks after the first add to what they were given.
    """

    size_step = 1

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = width + inputs
        self.reach = sum(dilations)
        self.norm = nn.BatchNorm2d(inputs)
        self.first = context_block(inputs, width, dilation=dilations[0])
        self.blocks = nn.ModuleList(
            [context_block(width + inputs, width, dilation=dilation) for dilation in dilations[1:]]
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        image = self.norm(images)
        x: Tensor = self.first(image)
        for block in self.blocks:
            x = x + block(torch.cat([x, image], dim=1))
        return torch.cat([x, image], dim=1)
