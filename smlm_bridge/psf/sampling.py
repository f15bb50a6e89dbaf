"""How many samples a pupil needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.psf.pupil_psf import PupilPSF

_CANDIDATES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
_HEIGHTS = 5


@dataclass(frozen=True)
class Sampling:
    """A number of pupil samples, and what it costs.

    Parameters
    ----------
    samples
        Along each axis of the pupil.
    error
        Largest difference over the z-range from a pupil of twice the samples, ||a - b|| / ||b|| over the window.
        It falls about fourfold with each doubling, so the difference from the limit is a third more.
    """

    samples: int
    error: float


def pupil_samples(
    optics: Optics,
    *,
    window_px: int,
    z_range_nm: tuple[float, float],
    zernike_rad: Mapping[int, float] | None = None,
    tolerance: float = 0.01,
) -> Sampling:
    """The fewest samples whose images are within ``tolerance`` of twice as many.

    Parameters
    ----------
    optics
        The microscope.
    window_px
        Side of the window around an emitter. A pupil of N samples repeats after N wavelength / (2 NA), so that
        is the least that N must hold.
    z_range_nm
        Heights of the emitters.
    zernike_rad
        Aberrations; a designed mask keeps the samples that it is given on.
    tolerance
        Allowed error, see ``Sampling``.

    Raises
    ------
    InputRejected
        If 512 samples do not suffice.
    """
    per_nm = 2 * optics.numerical_aperture / optics.wavelength_nm
    error = float("inf")
    for samples in _CANDIDATES:
        if samples < window_px * optics.pixel_nm * per_nm:
            continue
        error = sampling_error(
            optics, Pupil.flat(samples, zernike_rad), window_px=window_px, z_range_nm=z_range_nm
        )
        if error <= tolerance:
            return Sampling(samples, error)
    raise InputRejected(
        f"a window of {window_px} pixels over z {z_range_nm[0]:g} to {z_range_nm[1]:g} nm needs more than "
        f"{_CANDIDATES[-1]} pupil samples for an error of {tolerance:g} (it is {error:.2g} there). "
        "Choose a smaller window or z-range, or a larger tolerance."
    )


def sampling_error(optics: Optics, pupil: Pupil, *, window_px: int, z_range_nm: tuple[float, float]) -> float:
    """How much the images of a pupil differ from those of the same on twice the samples; see ``Sampling``.

    Parameters
    ----------
    optics, pupil
        The microscope, and the pupil on its own samples.
    window_px, z_range_nm
        Side of the window around an emitter, and heights, over which images are compared.
    """
    # The interpolation onto pixels is not in question here, so the centres are compared.
    points = replace(optics, pixel_integration=False)
    centre = window_px / 2 * optics.pixel_nm
    heights = torch.linspace(*z_range_nm, _HEIGHTS, dtype=torch.float64)
    xyz = torch.stack([torch.full_like(heights, centre)] * 2 + [heights], dim=1)
    coarse, fine = (
        PupilPSF.of(points, one, dtype=torch.float64).images(xyz, (window_px, window_px))
        for one in (pupil, pupil.refined())
    )
    return float(((coarse - fine).flatten(1).norm(dim=1) / fine.flatten(1).norm(dim=1)).max())
