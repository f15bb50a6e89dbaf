"""The Cramér-Rao bound: the best precision that any unbiased estimator can reach with a PSF and a camera.

I_ab = sum over pixels of d_a mu d_b mu / v(mu), with v the variance of the camera's photo-electrons (Poisson;
Huang et al. 2013 for read noise; the excess factor for EMCCDs). Always x, y, z, photons and background together,
because fixing a nuisance parameter makes the bound too good; further parameters at will.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.protocol import PSF, AnalyticPSF

PARAMETERS = ("x_nm", "y_nm", "z_nm", "photons", "background")
_SINGULAR = 1e-10  # least eigenvalue of the information, scaled to unit diagonal
_CHUNK_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class Extra:
    """A parameter beside position and photons that a PSF depends on: wavelength, dipole angle, an index.

    Parameters
    ----------
    name
        With its unit, e.g. ``wavelength_nm``.
    psf_at
        The PSF for a value of the parameter.
    value, step
        Where to differentiate, and half the distance of the central difference. Take double precision.
    """

    name: str
    psf_at: Callable[[float], PSF]
    value: float
    step: float

    def slope(self, xyz_nm: Tensor, shape: tuple[int, int], blur_nm: Tensor | None) -> Tensor:
        """(E, H, W) derivative of the fractions."""
        up, down = (
            self.psf_at(self.value + sign * self.step).images(xyz_nm, shape, blur_nm=blur_nm)
            for sign in (1, -1)
        )
        return (up - down) / (2 * self.step)


@dataclass(frozen=True)
class Unknowns:
    """What is estimated beside ``PARAMETERS``; each costs precision.

    Parameters
    ----------
    zernike
        Noll indices of aberrations, rad RMS; the PSF must be an ``AnalyticPSF`` with a pupil.
    extras
        Any other parameters.
    """

    zernike: tuple[int, ...] = ()
    extras: tuple[Extra, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """``PARAMETERS`` and what comes after them."""
        aberrations = (f"zernike_{noll}_rad" for noll in self.zernike)
        return (*PARAMETERS, *aberrations, *(extra.name for extra in self.extras))


def derivatives(
    psf: PSF,
    xyz_nm: Tensor,
    photons: Tensor,
    *,
    shape: tuple[int, int],
    blur_nm: Tensor | None = None,
    unknowns: Unknowns | None = None,
) -> tuple[Tensor, Tensor]:
    """Images and their derivatives: analytic where the PSF has them, else by forward-mode autodiff.

    Parameters
    ----------
    psf
        Any PSF.
    xyz_nm : (E, 3), photons : (E,), blur_nm : (E,)
        The emitters.
    shape
        Rows and columns of the window.
    unknowns
        Further parameters.

    Returns
    -------
    (E, H, W) expected photo-electrons without background, and (E, P, H, W) derivatives by ``unknowns.names``
    (``PARAMETERS`` without them).

    Raises
    ------
    InputRejected
        If a Zernike coefficient is unknown and the PSF has no derivative by it.
    """
    unknowns = unknowns or Unknowns()
    if isinstance(psf, AnalyticPSF):
        fraction, slopes = psf.derivatives(xyz_nm, shape, blur_nm=blur_nm, zernike=unknowns.zernike)
    elif unknowns.zernike:
        raise InputRejected(
            f"{type(psf).__name__} has no derivatives by Zernike coefficients {unknowns.zernike}. Use a PupilPSF, "
            "or give them as extras."
        )
    else:
        fraction, slopes = differentiated(psf, xyz_nm, shape, blur_nm=blur_nm)
    brightness = photons.to(fraction)[:, None, None]
    by_position, by_zernike = slopes[:, :3], slopes[:, 3:]
    by_extra = [extra.slope(xyz_nm, shape, blur_nm).to(fraction) for extra in unknowns.extras]
    columns = [
        by_position * brightness[:, None],
        fraction[:, None],
        torch.ones_like(fraction)[:, None],
        by_zernike * brightness[:, None],
        *(slope[:, None] * brightness[:, None] for slope in by_extra),
    ]
    return fraction * brightness, torch.cat(columns, dim=1)


def differentiated(
    psf: PSF, xyz_nm: Tensor, shape: tuple[int, int], *, blur_nm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(E, H, W) fractions and (E, 3, H, W) derivatives by x, y, z of any PSF, by forward-mode autodiff."""

    def images(position: Tensor) -> Tensor:
        return psf.images(position, shape, blur_nm=blur_nm)

    xyz_nm = xyz_nm.contiguous()
    directions = torch.eye(3, dtype=xyz_nm.dtype, device=xyz_nm.device)
    with warnings.catch_warnings():
        # On first use torch warns of a part of its own that it will remove.
        warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
        slopes = [
            torch.func.jvp(images, (xyz_nm,), (direction.expand_as(xyz_nm).contiguous(),))[1]
            for direction in directions
        ]
    return images(xyz_nm), torch.stack(slopes, dim=1)


def fisher(
    psf: PSF,
    camera: Camera,
    xyz_nm: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    shape: tuple[int, int],
    blur_nm: Tensor | None = None,
    unknowns: Unknowns | None = None,
    exact_emccd: bool = False,
) -> Tensor:
    """(E, P, P) Fisher information of single emitters on a constant background, by ``unknowns.names``.

    Parameters
    ----------
    psf, camera
        Any PSF; a camera whose maps have the shape of the window.
    xyz_nm, photons, background, blur_nm
        Of the emitters, (E, 3) and (E,).
    shape
        Rows and columns of the window.
    unknowns
        Parameters beside the five of ``PARAMETERS``.
    exact_emccd
        Whether an EMCCD's information is the exact one of its output's distribution
        (``Camera.information_variance``) instead of twice the variance of its electrons, which it reaches at
        high signal. Nothing else changes.
    """
    parts = max(1, _CHUNK_ELEMENTS // (shape[0] * shape[1] * len((unknowns or Unknowns()).names)))
    found = []
    for i in range(0, max(len(xyz_nm), 1), parts):
        part = slice(i, i + parts)
        blur = None if blur_nm is None else blur_nm[part]
        expected, slopes = derivatives(
            psf, xyz_nm[part], photons[part], shape=shape, blur_nm=blur, unknowns=unknowns
        )
        mean = (expected + background[part].to(expected)[:, None, None]).detach().cpu().numpy()
        noise = camera.information_variance(mean) if exact_emccd else camera.variance_photons(mean)
        variance = torch.as_tensor(noise, device=slopes.device).double()
        slopes = slopes.double()
        weighted = slopes / variance.clamp_min(1e-12)[:, None]
        found.append(torch.einsum("eayx,ebyx->eab", slopes, weighted))
    return torch.cat(found)


def crlb(
    psf: PSF,
    camera: Camera,
    xyz_nm: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    shape: tuple[int, int],
    blur_nm: Tensor | None = None,
    unknowns: Unknowns | None = None,
    exact_emccd: bool = False,
) -> Tensor:
    """(E, P) lowest standard deviations by ``unknowns.names``; see ``fisher`` for the arguments.

    A parameter that an image does not determine, e.g. z exactly in the focus of a symmetric PSF, has the
    bound ``inf``.

    Raises
    ------
    InputRejected
        If that is so for every emitter (singular information), e.g. with a PSF that does not change with z.
    """
    information = fisher(
        psf, camera, xyz_nm, photons, background,
        shape=shape, blur_nm=blur_nm, unknowns=unknowns, exact_emccd=exact_emccd,
    )  # fmt: skip
    return bound_of(information)


def bound_of(information: Tensor) -> Tensor:
    """(E, P) lowest standard deviations from Fisher information (E, P, P); see ``crlb`` for what it raises."""
    # Scaled to unit diagonal first: nanometres, photons and background differ by orders of magnitude.
    diagonal = torch.diagonal(information, dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    eigenvalues, vectors = torch.linalg.eigh(information * scale[:, :, None] * scale[:, None, :])
    singular = eigenvalues < _SINGULAR
    if len(singular) and bool(singular.any(1).all()):
        raise InputRejected(
            "at least one of x, y, z, photons, background cannot be told from these images (singular Fisher "
            "information), e.g. z of a PSF that does not change with z. Use a larger window or another PSF."
        )
    shares = vectors.square()  # (E, P, P): of each parameter in each eigenvector
    variance = (shares / eigenvalues.masked_fill(singular, torch.inf)[:, None, :]).sum(2)
    undetermined = (shares * singular[:, None, :]).sum(2) > 1e-6
    bound: Tensor = variance.sqrt().mul(scale).masked_fill(undetermined, torch.inf)
    return bound


def crlb_table(
    psf: PSF,
    camera: Camera,
    *,
    z_nm: Sequence[float],
    photons: float | Sequence[float],
    background: float,
    size_px: int = 41,
    device: torch.device | str = "cpu",
    unknowns: Unknowns | None = None,
    exact_emccd: bool = False,
) -> pd.DataFrame:
    """The bound over z, and over photons if several are given, for an emitter in the middle of a window.

    Parameters
    ----------
    psf, camera
        Any PSF; the camera's numbers, or the centre of its maps.
    z_nm
        Heights above the coverslip.
    photons, background
        Of the emitter (a number, or several), and per pixel; photo-electrons.
    size_px
        Side of the window in pixels.
    unknowns, exact_emccd
        As for ``fisher``.

    Returns
    -------
    DataFrame with ``z_nm``, ``photons`` if several were given, and ``sigma_`` of each of ``unknowns.names``
    (``sigma_x_nm``, ``sigma_y_nm``, ``sigma_z_nm``, ``sigma_photons``, ``sigma_background``); z runs fastest.
    """
    camera = middle_of(camera, size_px)
    rows, xyz, light = table_rows(
        z_nm, photons, background, middle_nm=size_px / 2 * psf.pixel_nm, device=device
    )
    bound = crlb(
        psf, camera, xyz, light, torch.full_like(light, background),
        shape=(size_px, size_px), unknowns=unknowns, exact_emccd=exact_emccd,
    ).cpu().numpy()  # fmt: skip
    names = (unknowns or Unknowns()).names
    return rows.assign(**{f"sigma_{name}": bound[:, i] for i, name in enumerate(names)})


def table_rows(
    z_nm: Sequence[float],
    photons: float | Sequence[float],
    background: float,
    *,
    middle_nm: float,
    device: torch.device | str,
) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """Rows of a table over z and, where several are given, photons; positions (E, 3) and photons (E,)."""
    several = not isinstance(photons, int | float)
    brightness = np.atleast_1d(np.asarray(photons, dtype=float))
    if not brightness.size or brightness.min() <= 0 or background < 0:
        raise InputRejected(f"photons {photons} must be above 0 and background {background:g} not below 0.")
    heights = np.asarray(z_nm, dtype=float)
    rows = pd.DataFrame(
        {"z_nm": np.tile(heights, len(brightness)), "photons": np.repeat(brightness, len(heights))}
    )
    light = torch.tensor(rows["photons"].tolist(), dtype=torch.float64, device=device)
    xyz = torch.full((len(rows), 3), middle_nm, dtype=torch.float64, device=device)
    xyz[:, 2] = torch.tensor(rows["z_nm"].tolist())
    return (rows if several else rows.drop(columns="photons")), xyz, light


def middle_of(camera: Camera, size_px: int) -> Camera:
    """The camera of a window in the middle of its maps."""
    maps = {
        name: getattr(camera, name)
        for name in ("offset", "e_per_adu", "read_noise_e")
        if isinstance(getattr(camera, name), np.ndarray)
    }
    for name, values in maps.items():
        rows, columns = values.shape
        if min(rows, columns) < size_px:
            raise InputRejected(
                f"the camera's {name} map of {columns} x {rows} pixels is smaller than the window of "
                f"{size_px}. Give a larger map, a number, or a smaller window."
            )
        top, left = (rows - size_px) // 2, (columns - size_px) // 2
        camera = replace(camera, **{name: values[top : top + size_px, left : left + size_px]})
    return camera
