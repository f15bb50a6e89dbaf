"""Regression of a single emitter in a box: position, photons, background and aberrations, each with its sigma.

A network that sees one emitter at a time is Zelger et al.'s (2018, Opt. Express 26:33166); here every parameter
also has a logarithm of its standard deviation, trained by the Gaussian likelihood with the weights of Seitzer et
al. (2022, ICLR).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, smooth_l1_loss

from smlm_bridge.networks.dense import stabilise
from smlm_bridge.networks.estimates import PARAMETERS
from smlm_bridge.networks.trainable import Trainable

SMALLEST_BOX_PX, LARGEST_BOX_PX = 13, 41
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


@dataclass(frozen=True)
class SingleTargets:
    """What a network of single emitters learns from a batch.

    Parameters
    ----------
    truth : (B, K)
        Parameters in physical units, as ``SingleLocalizer.forward`` returns them.
    aim : (B, K)
        What the means should be, in the units of the network: the truth, or an unbiased estimate.
    """

    truth: Tensor
    aim: Tensor


class _Residual(nn.Module):
    """Two layers beside a straight line, which begins as nothing but the line."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.second(silu(self.first(x)))
        return found


class BoxBackbone(nn.Module):
    """Boxes (B, C, S, S) to features (B, width + templates): a product with templates, then residual layers.

    An emitter stands within a pixel or so of the middle of its box (``Recentring`` sees to it) and its PSF is one,
    so nothing repeats across a box that a convolution could share, and dense layers cost a third of its time.
    """

    def __init__(self, pixels: int, templates: int, width: int, blocks: int, *, beside: int = 0) -> None:
        super().__init__()
        self.outputs = width + templates
        self.pixels = pixels
        self.templates = nn.Linear(pixels + beside, templates)
        self.enter = nn.Linear(templates, width)
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))

    def begin_with(self, components: Tensor) -> None:
        """Let the templates be the images' principal components (templates, pixels), which training then turns."""
        with torch.no_grad():
            self.templates.weight.zero_()
            self.templates.weight[:, : self.pixels] = components
            self.templates.bias.zero_()

    def forward(self, images: Tensor, beside: Tensor | None = None) -> Tensor:
        """(B, C, S, S), and numbers (B, beside) that go with them, to (B, outputs)."""
        flat = images.flatten(1)
        seen = self.templates(flat if beside is None else torch.cat([flat, beside], dim=1))
        return torch.cat([silu(self.blocks(silu(self.enter(seen)))), seen], dim=1)


class GatedHead(nn.Module):
    """Features to means and logarithms of sigmas, (B, 2K).

    A mean is a sum of the templates' answers with weights that depend on the image: what a step of Fisher scoring
    is, whose weights depend on where the emitter is believed to be.
    """

    def __init__(self, width: int, templates: int, outputs: int) -> None:
        super().__init__()
        self.width, self.templates, self.outputs = width, templates, outputs
        self.plain = nn.Linear(width, 2 * outputs)
        self.gates = nn.Linear(width, outputs * templates)
        for layer in (self.plain, self.gates):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.gates.weight, std=0.01 / math.sqrt(width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width + templates) to (B, 2 outputs)."""
        known, seen = features[:, : self.width], features[:, self.width :]
        gates = self.gates(known).reshape(-1, self.outputs, self.templates)
        step = (gates @ seen[:, :, None])[:, :, 0] / math.sqrt(self.templates)
        out = self.plain(known)
        return torch.cat([out[:, : self.outputs] + step, out[:, self.outputs :]], dim=1)


class Recentring(nn.Module):
    """Moves boxes by whole pixels, until the emitter stands near their middle.

    Where emitters may stand anywhere in a box, every template would have to be learnt for every place. A small
    network finds the place to within a pixel first; what is moved in from outside of the box is zero, the mean of
    the network's input.
    """

    def __init__(self, inputs: int, side: int) -> None:
        super().__init__()
        templates, width = 64, 128
        self.side = side
        self.backbone = BoxBackbone(inputs * side**2, templates, width, 2)
        self.head = GatedHead(width, templates, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, C, S, S) to moved ones, and how far the emitters were (B, 2): whole pixels, and as found."""
        away: Tensor = self.head(self.backbone(images))[:, :2]
        most = self.side // 2
        whole = away.detach().round().clamp(-most, most)
        pixel = torch.arange(self.side, device=images.device)
        taken = pixel[None, :, None] + whole.long()[:, :, None, None] == pixel  # (B, 2, to, from)
        by_x, by_y = taken.to(images.dtype).unbind(1)
        return by_y[:, None] @ images @ by_x[:, None].transpose(2, 3), whole, away


class SingleLocalizer(Trainable):
    """Boxes of photo-electrons (B, C, S, S) to estimates (B, 2K): K parameters, then their standard deviations.

    The parameters are ``estimates.PARAMETERS`` and the Zernike coefficients of the scaling: x and y from the
    box's centre and z in nm, photo-electrons of the emitter and per pixel of the background, rad.

    Parameters
    ----------
    inputs, side
        Channels and side of the boxes.
    templates, width, blocks
        Of ``BoxBackbone``.
    recentred
        Whether boxes go through ``Recentring`` first.
    """

    backbone: BoxBackbone

    def __init__(
        self,
        inputs: int,
        side: int,
        templates: int,
        width: int,
        blocks: int,
        scaling: SingleScaling,
        *,
        recentred: bool = False,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.outputs = len(PARAMETERS) + len(scaling.zernike_rad)
        self.recentring = Recentring(inputs, side) if recentred else None
        self.backbone = BoxBackbone(inputs * side**2, templates, width, blocks, beside=2 if recentred else 0)
        self.head = GatedHead(width, templates, self.outputs)

    def freeze(self) -> None:
        """Keep the layers between templates and head: another PSF asks for other templates."""
        self.backbone.blocks.requires_grad_(False)

    def input_of(self, photons: Tensor) -> Tensor:
        """What the backbone sees of photo-electrons."""
        s: SingleScaling = self.scaling
        return (stabilise(photons, s.read_variance) - s.input_shift) / s.input_scale

    def raw(self, photons: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of sigmas, (B, K) each, in units of the scaling; levels as logarithms."""
        return self._raw(photons)[:2]

    def _raw(self, photons: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``raw``, and where ``Recentring`` sees the emitters, (B, 2) px from the middle."""
        # In full precision also under autocast: eight bits of mantissa are nanometres of a wide z range.
        with torch.autocast(photons.device.type, enabled=False):
            images, found = self.input_of(photons.float()), None
            if self.recentring is None:
                out: Tensor = self.head(self.backbone(images))
                mean = out[:, : self.outputs]
            else:
                images, whole, found = self.recentring(images)
                out = self.head(self.backbone(images, whole / self.recentring.side))
                mean = torch.cat([out[:, :2] + whole, out[:, 2 : self.outputs]], dim=1)
        return mean, out[:, self.outputs :].clamp(*_LOG_SIGMA), found

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

    def loss(self, photons: Tensor, targets: SingleTargets) -> dict[str, Tensor]:
        """Negative logarithm of the Gaussian likelihood, per box: means of the aim, sigmas of the truth.

        Every term has the weight of its own sigma, held constant (Seitzer et al. 2022, beta = 0.5): the optimum
        is that of the likelihood, but parameters that are known well do not drown those still to be learnt.
        Where boxes are recentred, the pixels by which their places are missed come on top.
        """
        mean, log_sigma, found = self._raw(photons)
        weight = torch.exp(log_sigma.detach())
        away = (mean - targets.aim) / weight
        truth = self.scaled(targets.truth)
        error = (mean.detach() - truth) * torch.exp(-log_sigma)
        terms = weight * 0.5 * (away.square() + error.square()) + weight * log_sigma
        likelihood = terms.sum(1).mean()
        if found is None:
            return {"likelihood": likelihood}
        return {"likelihood": likelihood + smooth_l1_loss(found, truth[:, :2])}

    def units(self, truth: Tensor) -> Tensor:
        """(B, K) physical change for a change by one of each of the network's parameters, at ``truth`` (B, K)."""
        s: SingleScaling = self.scaling
        place = truth.new_tensor([s.pixel_nm, s.pixel_nm, s.z_half_nm]).expand(len(truth), 3)
        levels = [truth[:, 3:4].clamp_min(_LEAST_PHOTONS), truth[:, 4:5].clamp_min(_LEAST_BACKGROUND)]
        return torch.cat([place, *levels, truth.new_tensor(s.zernike_rad).expand(len(truth), -1)], dim=1)

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
