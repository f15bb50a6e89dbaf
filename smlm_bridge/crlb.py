"""The Cramér-Rao bound: the best precision that any unbiased estimator can reach with a PSF and a camera.

I_ab = sum over pixels of d_a mu d_b mu / v(mu), with v the variance of the camera's photo-electrons (Poisson;
Huang et al. 2013 for read noise; the excess factor for EMCCDs). Always all five parameters x, y, z, photons
and background, because fixing a nuisance parameter makes the bound too good.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.protocol import PSF

PARAMETERS = ("x_nm", "y_nm", "z_nm", "photons", "background")
_SINGULAR = 1e-10  # least eigenvalue of the information, scaled to unit diagonal


def derivatives(
    psf: PSF, xyz_nm: Tensor, photons: Tensor, *, shape: tuple[int, int], blur_nm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images and their derivatives by forward-mode autodiff.

    Parameters
    ----------
    psf
        Any PSF.
    xyz_nm : (E, 3), photons : (E,), blur_nm : (E,)
        The emitters.
    shape
        Rows and columns of the window.

    Returns
    -------
    (E, H, W) expected photo-electrons without background, and (E, 5, H, W) derivatives by ``PARAMETERS``.
    """

    def images(position: Tensor) -> Tensor:
        return psf.images(position, shape, blur_nm=blur_nm)

    xyz_nm = xyz_nm.contiguous()
    fraction = images(xyz_nm)
    directions = torch.eye(3, dtype=xyz_nm.dtype, device=xyz_nm.device)
    with warnings.catch_warnings():
        # On first use torch warns of a part of its own that it will remove.
        warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
        slopes = [
            torch.func.jvp(images, (xyz_nm,), (direction.expand_as(xyz_nm).contiguous(),))[1]
            for direction in directions
        ]
    brightness = photons.to(fraction)[:, None, None]
    by_position = [slope * brightness for slope in slopes]
    return fraction * brightness, torch.stack([*by_position, fraction, torch.ones_like(fraction)], dim=1)


def fisher(
    psf: PSF,
    camera: Camera,
    xyz_nm: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    shape: tuple[int, int],
    blur_nm: Tensor | None = None,
) -> Tensor:
    """(E, 5, 5) Fisher information of single emitters on a constant background, by ``PARAMETERS``."""
    expected, slopes = derivatives(psf, xyz_nm, photons, shape=shape, blur_nm=blur_nm)
    mean = (expected + background.to(expected)[:, None, None]).detach()
    variance = torch.as_tensor(camera.variance_photons(mean.cpu().numpy()), device=mean.device).double()
    slopes = slopes.double()
    return torch.einsum("eayx,ebyx,eyx->eab", slopes, slopes, 1.0 / variance.clamp_min(1e-12))


def crlb(
    psf: PSF,
    camera: Camera,
    xyz_nm: Tensor,
    photons: Tensor,
    background: Tensor,
    *,
    shape: tuple[int, int],
    blur_nm: Tensor | None = None,
) -> Tensor:
    """(E, 5) lowest standard deviations by ``PARAMETERS``; see ``fisher`` for the arguments.

    A parameter that an image does not determine, e.g. z exactly in the focus of a symmetric PSF, has the
    bound ``inf``.

    Raises
    ------
    InputRejected
        If that is so for every emitter (singular information), e.g. with a PSF that does not change with z.
    """
    information = fisher(psf, camera, xyz_nm, photons, background, shape=shape, blur_nm=blur_nm)
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
    shares = vectors.square()  # (E, 5, 5): of each parameter in each eigenvector
    variance = (shares / eigenvalues.masked_fill(singular, torch.inf)[:, None, :]).sum(2)
    undetermined = (shares * singular[:, None, :]).sum(2) > 1e-6
    bound: Tensor = variance.sqrt().mul(scale).masked_fill(undetermined, torch.inf)
    return bound


def crlb_table(
    psf: PSF,
    camera: Camera,
    *,
    z_nm: Sequence[float],
    photons: float,
    background: float,
    size_px: int = 41,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """The bound over z for an emitter in the middle of a window.

    Parameters
    ----------
    psf, camera
        Any PSF; the camera's numbers, or the centre of its maps.
    z_nm
        Heights above the coverslip.
    photons, background
        Of the emitter, and per pixel; photo-electrons.
    size_px
        Side of the window in pixels.

    Returns
    -------
    DataFrame with ``z_nm``, ``sigma_x_nm``, ``sigma_y_nm``, ``sigma_z_nm``, ``sigma_photons``,
    ``sigma_background``.
    """
    if photons <= 0 or background < 0:
        raise InputRejected(f"photons {photons:g} must be above 0 and background {background:g} not below 0.")
    if isinstance(camera.read_noise_e, np.ndarray):
        rows, columns = camera.read_noise_e.shape
        if min(rows, columns) < size_px:
            raise InputRejected(
                f"the camera's read noise map of {columns} x {rows} pixels is smaller than the window of "
                f"{size_px}. Give a larger map, a number, or a smaller window."
            )
        camera = camera.crop((rows - size_px) // 2, (columns - size_px) // 2, size_px, size_px)
    centre = size_px / 2 * psf.pixel_nm
    xyz = torch.tensor([[centre, centre, float(z)] for z in z_nm], dtype=torch.float64, device=device)
    ones = torch.ones(len(xyz), dtype=torch.float64, device=device)
    bound = crlb(psf, camera, xyz, photons * ones, background * ones, shape=(size_px, size_px)).cpu().numpy()
    columns_of = {name: f"sigma_{name}" for name in PARAMETERS}
    return pd.DataFrame(
        {"z_nm": np.asarray(z_nm, dtype=float)}
        | {columns_of[p]: bound[:, i] for i, p in enumerate(PARAMETERS)}
    )
