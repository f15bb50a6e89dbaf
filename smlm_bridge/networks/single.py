"""Regression of a single emitter in a box: position, photons, background and aberrations, each with its sigma.

A network that sees one emitter at a time is Zelger et al.'s (2018, Opt. Express 26:33166); here every parameter
also has a logarithm of its standard deviation, trained by the Gaussian likelihood with the weights of Seitzer et
al. (2022, ICLR).
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from smlm_bridge.networks.dense import stabilise
from smlm_bridge.networks.estimates import PARAMETERS
from smlm_bridge.networks.trainable import Trainable

SMALLEST_BOX_PX, LARGEST_BOX_PX = 13, 41
_LAST_SIDE = 5  # boxes are halved until they are this small
_LEAST_PHOTONS, _LEAST_BACKGROUND = 1.0, 0.1
_LOG_SIGMA = (-7.0, 3.0)


@dataclass(frozen=True)
class SingleScaling:
    """Constants that turn photo-electrons into network input and network output into physical units.

    Parameters
    ----------
    read_variance, input_shift, input_scale
        As in ``dense.DenseScaling``.
    pixel_nm, z_mid_nm, z_half_nm, photons, background
        Units of the outputs.
    zernike_rad
        Units of the aberrations, one each.
    """

    read_variance: float
    input_shift: float
    input_scale: float
    pixel_nm: float
    z_mid_nm: float
    z_half_nm: float
    photons: float
    background: float
    zernike_rad: tuple[float, ...] = ()


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU (which ONNX Runtime joins to one operation)."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class BoxBackbone(nn.Module):
    """Boxes (B, C, S, S) to features (B, outputs): halved by strides until 5 px or fewer are left.

    ``widths`` are the channels of the first scales; the last is repeated for larger boxes.
    """

    def __init__(self, inputs: int, side: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.first = _block(inputs, widths[0])
        self.down, self.same = nn.ModuleList(), nn.ModuleList()
        before, scale = widths[0], 0
        while side > _LAST_SIDE:
            scale += 1
            after = widths[min(scale, len(widths) - 1)]
            self.down.append(_block(before, after, stride=2))
            self.same.append(_block(after, after))
            before, side = after, (side + 1) // 2
        self.outputs = before * side**2

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, S, S) to (B, outputs)."""
        x: Tensor = self.first(images)
        for down, same in zip(self.down, self.same, strict=True):
            x = down(x)
            x = x + same(x)
        return x.flatten(1)


class SingleLocalizer(Trainable):
    """Boxes of photo-electrons (B, C, S, S) to estimates (B, 2K): K parameters, then their standard deviations.

    The parameters are ``estimates.PARAMETERS`` and the Zernike coefficients of the scaling: x and y from the
    box's centre and z in nm, photo-electrons of the emitter and per pixel of the background, rad.
    """

    def __init__(
        self, inputs: int, side: int, widths: tuple[int, ...], hidden: int, scaling: SingleScaling
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.outputs = len(PARAMETERS) + len(scaling.zernike_rad)
        self.backbone = BoxBackbone(inputs, side, widths)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.outputs, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 2 * self.outputs),
        )
        last = cast("nn.Linear", self.head[-1])
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)

    def raw(self, photons: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of sigmas, (B, K) each, in units of the scaling; levels as logarithms."""
        s = self.scaling
        features = self.backbone((stabilise(photons, s.read_variance) - s.input_shift) / s.input_scale)
        # In full precision also under autocast: eight bits of mantissa are nanometres of a wide z range.
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.head(features.float())
        return out[:, : self.outputs], out[:, self.outputs :].clamp(*_LOG_SIGMA)

    def forward(self, photons: Tensor) -> Tensor:
        """Estimates in physical units."""
        s = self.scaling
        mean, log_sigma = self.raw(photons)
        sigma = torch.exp(log_sigma)
        levels = torch.exp(mean[:, 3:5].clamp(-10.0, 10.0)) * mean.new_tensor([s.photons, s.background])
        unit = mean.new_tensor([s.pixel_nm, s.pixel_nm, s.z_half_nm])
        place = mean[:, :3] * unit + mean.new_tensor([0.0, 0.0, s.z_mid_nm])
        parts = [place, levels, sigma[:, :3] * unit, sigma[:, 3:5] * levels]
        if s.zernike_rad:
            rad = mean.new_tensor(s.zernike_rad)
            parts = [*parts[:2], mean[:, 5:] * rad, *parts[2:], sigma[:, 5:] * rad]
        return torch.cat(parts, dim=1)

    def loss(self, photons: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Negative logarithm of the Gaussian likelihood of targets (B, K) in the units of ``forward``, per box.

        Every term has the weight of its own sigma, held constant (Seitzer et al. 2022, beta = 0.5): the optimum
        is that of the likelihood, but parameters that are known well do not drown those still to be learnt.
        """
        mean, log_sigma = self.raw(photons)
        error = (mean - self.scaled(targets)) * torch.exp(-log_sigma)
        terms = torch.exp(log_sigma.detach()) * (0.5 * error.square() + log_sigma)
        return {"likelihood": terms.sum(1).mean()}

    def scaled(self, targets: Tensor) -> Tensor:
        """Parameters (B, K) in physical units to those of the network."""
        s = self.scaling
        levels = [
            (targets[:, 3].clamp_min(_LEAST_PHOTONS) / s.photons).log(),
            (targets[:, 4].clamp_min(_LEAST_BACKGROUND) / s.background).log(),
        ]
        return torch.cat(
            [
                targets[:, :2] / s.pixel_nm,
                (targets[:, 2:3] - s.z_mid_nm) / s.z_half_nm,
                torch.stack(levels, dim=1),
                targets[:, 5:] / targets.new_tensor(s.zernike_rad or [1.0] * (targets.shape[1] - 5)),
            ],
            dim=1,
        )
