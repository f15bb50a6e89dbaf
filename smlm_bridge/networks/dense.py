"""The dense 3-D localizer: probability, offsets, photons and their standard deviations at camera resolution.

The idea of one probability and one Gaussian for each pixel is DECODE's (Speiser et al. 2021); the mixture is
taken over the 3 x 3 pixels around each emitter only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from smlm_bridge.networks.backbones import Backbone, conv_block
from smlm_bridge.networks.maps import MAP_NAMES
from smlm_bridge.networks.trainable import Trainable

STABILISER = 0.375  # of the generalised Anscombe transform
_LEAST_PHOTONS = 1.0  # a gamma law draws emitters without light, whose logarithm is no target
_LOGIT, _MEAN, _LOG_SIGMA, _BACKGROUND = 0, slice(1, 5), slice(5, 9), 9


@dataclass(frozen=True)
class DenseScaling:
    """Constants that turn photo-electrons into network input and network output into physical units.

    Parameters
    ----------
    read_variance
        Added before the square root (generalised Anscombe transform), photo-electrons squared.
    input_shift, input_scale
        Mean and spread of the transformed training frames.
    pixel_nm, z_mid_nm, z_half_nm, photons, background
        Units of the outputs.
    """

    read_variance: float
    input_shift: float
    input_scale: float
    pixel_nm: float
    z_mid_nm: float
    z_half_nm: float
    photons: float
    background: float


@dataclass(frozen=True)
class Targets:
    """The emitters asked for in a batch.

    Parameters
    ----------
    image : (E,) int64
        Index of the image in the batch.
    xyz_nm : (E, 3)
        Positions; x, y from the corner of the image.
    photons : (E,)
    background : (B, H, W)
        Photo-electrons per pixel.
    """

    image: Tensor
    xyz_nm: Tensor
    photons: Tensor
    background: Tensor


def stabilise(photons: Tensor, read_variance: Tensor | float) -> Tensor:
    """Noise of about unit variance at every brightness: generalised Anscombe transform (Starck 1998)."""
    return 2.0 * torch.sqrt((photons + STABILISER + read_variance).clamp_min(0.0))


class DenseLocalizer(Trainable):
    """Photo-electrons (B, C, H, W) to maps (B, 10, H, W) in the order and units of ``maps.MAP_NAMES``."""

    def __init__(self, backbone: Backbone, scaling: DenseScaling) -> None:
        super().__init__()
        self.scaling = scaling
        self.backbone: Backbone = backbone
        self.head = nn.Sequential(conv_block(self.backbone.outputs, self.backbone.outputs))
        self.out = nn.Conv2d(self.backbone.outputs, len(MAP_NAMES), 1)
        nn.init.normal_(self.out.weight, std=0.01)
        assert self.out.bias is not None
        with torch.no_grad():
            self.out.bias.zero_()
            self.out.bias[_LOGIT] = -6.0  # emitters are rare

    @property
    def reach(self) -> int:
        """Pixels to one side that an output pixel depends on."""
        return int(self.backbone.reach) + 1

    @property
    def size_step(self) -> int:
        """Height and width of the input must be multiples of this."""
        return int(self.backbone.size_step)

    def raw(self, photons: Tensor) -> Tensor:
        """(B, 10, H, W) network output in its own units."""
        s = self.scaling
        scaled = (stabilise(photons, s.read_variance) - s.input_shift) / s.input_scale
        features: Tensor = self.head(self.backbone(scaled))
        # In full precision also under autocast: eight bits of mantissa are nanometres of a wide z range.
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.out(features.float())
        return out

    def forward(self, photons: Tensor) -> Tensor:
        """Maps in physical units."""
        s, out = self.scaling, self.raw(photons)
        mean, sigma = out[:, _MEAN], torch.exp(out[:, _LOG_SIGMA].clamp(-7.0, 3.0))
        counts = s.photons * torch.exp(mean[:, 3:].clamp(-10.0, 10.0))
        lateral, z = s.pixel_nm * mean[:, :2], s.z_mid_nm + s.z_half_nm * mean[:, 2:3]
        return torch.cat(
            [
                torch.sigmoid(out[:, :1]),
                lateral,
                z,
                counts,
                s.pixel_nm * sigma[:, :2],
                s.z_half_nm * sigma[:, 2:3],
                counts * sigma[:, 3:],
                s.background * torch.exp(out[:, _BACKGROUND:].clamp(-10.0, 10.0)),
            ],
            dim=1,
        )

    def loss(self, photons: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Terms of the loss, each a scalar: detection, localization, background.

        Detection is the cross-entropy summed over pixels, per emitter; localization the negative
        log-likelihood of each emitter under the mixture of the Gaussians of the 3 x 3 pixels around it,
        weighted by their probabilities. Two emitters in one pixel ask for one detection and both positions.
        """
        s, out = self.scaling, self.raw(photons)
        height, width = out.shape[2:]
        position = targets.xyz_nm[:, :2] / s.pixel_nm
        column, row = position.floor().long().unbind(1)
        column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
        wanted = torch.zeros_like(out[:, _LOGIT])
        wanted[targets.image, row, column] = 1.0
        emitters = max(1, targets.image.numel())
        detection = binary_cross_entropy_with_logits(out[:, _LOGIT], wanted, reduction="sum") / emitters
        level = (targets.background.clamp_min(0.1) / s.background).log()
        background = (out[:, _BACKGROUND] - level).square().mean()
        return {
            "detection": detection,
            "localization": self._mixture(out, targets, row, column) / emitters,
            "background": background,
        }

    def _mixture(self, out: Tensor, targets: Targets, row: Tensor, column: Tensor) -> Tensor:
        s = self.scaling
        step = torch.arange(3, device=out.device)
        padded = pad(out.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1), value=-1e4)
        rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step
        near = padded[targets.image[:, None, None], rows, columns].flatten(1, 2)  # (E, 9, 10)
        inside = near[..., _LOGIT] > -9e3
        log_weight = nn.functional.logsigmoid(near[..., _LOGIT]).masked_fill(~inside, -math.inf).detach()
        log_weight = log_weight - log_weight.logsumexp(1, keepdim=True)
        centre = torch.stack([columns.expand(-1, 3, 3), rows.expand(-1, 3, 3)], dim=-1).flatten(1, 2) - 0.5
        wanted = torch.cat(
            [
                targets.xyz_nm[:, None, :2] / s.pixel_nm - centre,
                ((targets.xyz_nm[:, 2] - s.z_mid_nm) / s.z_half_nm)[:, None, None].expand(-1, 9, 1),
                (targets.photons.clamp_min(_LEAST_PHOTONS) / s.photons).log()[:, None, None].expand(-1, 9, 1),
            ],
            dim=-1,
        )
        log_sigma = near[..., _LOG_SIGMA].clamp(-7.0, 3.0)
        error = (near[..., _MEAN].masked_fill(~inside[..., None], 0.0) - wanted) * torch.exp(-log_sigma)
        log_density = (-0.5 * error.square() - log_sigma).sum(-1)
        return -torch.logsumexp(log_weight + log_density, dim=1).sum()
