"""Backbones: images in, features of the same height and width out."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from smlm_bridge.networks.context import DilatedContext


def conv_block(inputs: int, outputs: int, *, dilation: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch norm, SiLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with one scale for each width, halved by averaging.

    Height and width must be multiples of ``2 ** (len(widths) - 1)``. ``bottom_dilations`` adds one block each
    at the coarsest scale, which is where the wide context of an engineered PSF is cheapest.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], bottom_dilations: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.outputs = widths[0]
        self.size_step = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList()
        for before, after in zip((inputs, *widths[:-1]), widths, strict=True):
            self.down.append(nn.Sequential(conv_block(before, after), conv_block(after, after)))
        self.bottom = nn.ModuleList(
            [conv_block(widths[-1], widths[-1], dilation=d) for d in bottom_dilations]
        )
        self.up = nn.ModuleList()
        for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(nn.Sequential(conv_block(coarse + fine, fine), conv_block(fine, fine)))
        # Of one output pixel, in input pixels, to one side: what a tile has to see beyond its own edge.
        at_bottom = 2 + sum(bottom_dilations)
        self.reach = (
            self.size_step * at_bottom + sum(5 * 2**i for i in range(len(widths) - 1)) + self.size_step
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        x: Tensor
        features = [self.down[0](images)]
        for down in list(self.down)[1:]:
            features.append(down(nn.functional.avg_pool2d(features[-1], 2)))
        x = features.pop()
        for block in self.bottom:
            x = x + block(x)
        for up in self.up:
            x = up(torch.cat([interpolate(x, scale_factor=2.0, mode="nearest"), features.pop()], dim=1))
        return x


class SharedEncoder(nn.Module):
    """Every image of a sample through one encoder, and their features together through a backbone."""

    def __init__(self, images: int, encoder: "UNet | DilatedContext", union: "UNet | DilatedContext") -> None:
        super().__init__()
        self.images, self.encoder, self.union = images, encoder, union
        self.outputs: int = union.outputs
        self.size_step: int = max(encoder.size_step, union.size_step)
        self.reach: int = encoder.reach + union.reach

    def forward(self, images: Tensor) -> Tensor:
        """(B, images, H, W) to (B, outputs, H, W)."""
        # Not one batch of all images: exported, that would need their number.
        features = [self.encoder(image) for image in images.chunk(self.images, dim=1)]
        found: Tensor = self.union(torch.cat(features, dim=1))
        return found


class SeparateEncoders(nn.Module):
    """Every image of a sample through the encoder of its channel, and their features through a backbone."""

    def __init__(
        self, images: int, encoders: "Sequence[UNet | DilatedContext]", union: "UNet | DilatedContext"
    ) -> None:
        super().__init__()
        self.images, self.encoders, self.union = images, nn.ModuleList(encoders), union
        self.outputs: int = union.outputs
        self.size_step: int = max(union.size_step, *(encoder.size_step for encoder in encoders))
        self.reach: int = max(encoder.reach for encoder in encoders) + union.reach

    def forward(self, images: Tensor) -> Tensor:
        """(B, images, H, W) to (B, outputs, H, W); the channels of a frame follow each other."""
        parts = images.chunk(self.images, dim=1)
        features = [self.encoders[i % len(self.encoders)](image) for i, image in enumerate(parts)]
        found: Tensor = self.union(torch.cat(features, dim=1))
        return found


Backbone = UNet | DilatedContext | SharedEncoder | SeparateEncoders
Encoding = Literal["none", "shared", "separate"]


def make_backbone(
    images: int,
    *,
    kind: str,
    widths: tuple[int, ...],
    bottom_dilations: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    encoders: Encoding = "none",
    channels: int = 1,
) -> Backbone:
    """A backbone of a sample's images: the channels of its frames.

    Parameters
    ----------
    images
        Of a sample.
    kind
        ``"unet"`` with ``widths`` and ``bottom_dilations``, or ``"context"`` with the first of ``widths`` and
        ``dilations``.
    encoders
        Whether each image goes through an encoder first, of the same kind and sizes: one for all
        (``"shared"``), or one for each channel (``"separate"``).
    channels
        Of a frame; those of a frame follow each other.
    """

    def of(inputs: int) -> UNet | DilatedContext:
        if kind == "context":
            return DilatedContext(inputs, widths[0], dilations)
        return UNet(inputs, widths, bottom_dilations)

    if encoders == "none":
        return of(images)
    if encoders == "shared":
        encoder = of(1)
        return SharedEncoder(images, encoder, of(images * encoder.outputs))
    own = [of(1) for _ in range(channels)]
    return SeparateEncoders(images, own, of(images * own[0].outputs))
