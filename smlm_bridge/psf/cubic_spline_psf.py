"""The cubic-spline PSF for what needs torch: ``protocol.PSF`` over the table of ``cubic_spline``."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.cubic_spline import POWERS, CubicSpline
from smlm_bridge.psf.protocol import PSF

_CHUNK_ELEMENTS = 16_000_000


@dataclass(frozen=True, eq=False)
class CubicSplinePSF:
    """A cubic spline as a PSF (see ``protocol.PSF``).

    Parameters
    ----------
    spline
        The table.
    device
        Where it is wanted, for those who choose positions' device by the PSF, as fits do; ``images`` are made
        wherever the positions are.
    """

    spline: CubicSpline
    device: torch.device | str = "cpu"

    @property
    def pixel_nm(self) -> float:
        """Camera pixel."""
        return self.spline.pixel_nm

    @cached_property
    def _coefficients(self) -> dict[torch.device, Tensor]:
        return {torch.device("cpu"): torch.from_numpy(self.spline.coefficients)}

    def images(self, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None) -> Tensor:
        """Expected fraction of photons in every pixel; see ``protocol.PSF.images``.

        Beyond the table there is no light; heights outside take its first or last plane.

        Raises
        ------
        InputRejected
            If a blur is asked for: a spline holds the images as they were recorded, with theirs.
        """
        if blur_nm is not None and bool((blur_nm.detach() != 0).any()):
            raise InputRejected(
                "a cubic spline cannot be blurred: it holds the images as they were recorded. Leave blur_nm out, "
                "or use a pupil."
            )
        chunk = max(1, _CHUNK_ELEMENTS // (POWERS * shape[0] * shape[1]))
        parts = [self._images(xyz_nm[i : i + chunk], shape) for i in range(0, xyz_nm.shape[0], chunk)]
        return torch.cat(parts) if parts else xyz_nm.new_zeros((0, *shape))

    def _images(self, xyz_nm: Tensor, shape: tuple[int, int]) -> Tensor:
        known = self._coefficients
        if xyz_nm.device not in known:
            known[xyz_nm.device] = known[torch.device("cpu")].to(xyz_nm.device)
        table = known[xyz_nm.device]
        planes, rows, columns = table.shape[:3]
        height = ((xyz_nm[:, 2] - self.spline.z_first_nm) / self.spline.z_step_nm).clamp(0.0, float(planes))
        k = height.detach().floor().clamp(max=planes - 1)
        (j, dy), (i, dx) = (self._voxels(xyz_nm[:, 1 - axis], shape[axis], axis) for axis in (0, 1))
        powers = [torch.stack([torch.ones_like(d), d, d**2, d**3], 1) for d in (height - k, dy, dx)]
        weights = torch.einsum("ea,eb,ec->eabc", *powers).flatten(1)
        inside = ((j >= 0) & (j < rows))[:, :, None] & ((i >= 0) & (i < columns))[:, None, :]
        found = table[
            k.long()[:, None, None], j.clamp(0, rows - 1)[:, :, None], i.clamp(0, columns - 1)[:, None, :]
        ]
        return torch.einsum("eyxm,em->eyx", found.to(weights.dtype), weights) * inside

    def _voxels(self, position_nm: Tensor, count: int, axis: int) -> tuple[Tensor, Tensor]:
        """Voxel (E, count) of each pixel of an axis, and how far into it (E,) the pixel's centre lies."""
        step = self.spline.samples_per_px
        first = self.spline.centre[axis] + (PIXEL_CENTRE - position_nm / self.pixel_nm) * step
        whole = first.detach().floor()
        index = whole.long()[:, None] + step * torch.arange(count, device=position_nm.device)
        return index, first - whole


def tabulate(
    psf: PSF,
    *,
    z_range_nm: tuple[float, float],
    size_px: int,
    z_step_nm: float = 40.0,
    samples_per_px: int = 2,
    device: torch.device | str = "cpu",
) -> CubicSpline:
    """The cubic spline of any PSF.

    Parameters
    ----------
    psf
        The PSF.
    z_range_nm
        Lowest and highest height.
    size_px
        Side of the table in pixels: the box that is to be fitted and twice as far as an emitter may stand
        from its middle.
    z_step_nm, samples_per_px
        Spacing of the knots. At one sample a pixel of 110 nm the highest frequencies of an aperture of 1.49
        are interpolated to about a percent of the peak only.
    device
        Where the PSF is computed.

    Raises
    ------
    InputRejected
        If the range has no extent or the size is below 4 pixels.
    """
    low, high = z_range_nm
    if not (high > low and z_step_nm > 0 and size_px >= 4 and samples_per_px >= 1):
        raise InputRejected(
            f"z_range_nm {low:g} to {high:g} by {z_step_nm:g} nm over {size_px} px and {samples_per_px} samples a "
            "pixel: give the lower height first, a step above 0, 4 pixels or more and 1 sample or more."
        )
    planes = max(4, math.ceil((high - low) / z_step_nm) + 1)
    heights = np.linspace(low, high, planes)
    n, s = size_px, samples_per_px
    stack = np.empty((planes, n * s, n * s))
    # Sample k of a pixel is the pixel's centre of an emitter moved back by k / s pixels.
    moved = (n / 2 - np.arange(s) / s) * psf.pixel_nm
    for a, y_nm in enumerate(moved):
        for b, x_nm in enumerate(moved):
            xyz = torch.tensor([[x_nm, y_nm, z] for z in heights], dtype=torch.float64, device=device)
            with torch.no_grad():
                stack[:, a::s, b::s] = psf.images(xyz, (n, n)).double().cpu().numpy()
    middle = (n / 2 - PIXEL_CENTRE) * s
    return CubicSpline.of_stack(
        stack,
        pixel_nm=psf.pixel_nm,
        z_first_nm=low,
        z_step_nm=float(heights[1] - heights[0]),
        centre=(middle, middle),
        samples_per_px=s,
    )
