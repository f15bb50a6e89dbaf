"""Render a table back into frames with a calibrated PSF: the test that needs no ground truth.

Photons and background are refitted, so that only positions and the PSF are judged.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from smlm_bridge.errors import InputRejected
from smlm_bridge.psf.protocol import PSF

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Rerendered:
    """One frame rendered back.

    Parameters
    ----------
    model, background : (H, W)
        Fitted photo-electrons, with and without the emitters.
    photons : (E,)
        Refitted photons.
    residual_power, signal_power
        Sum of squares of data minus model, and of data minus background.
    """

    model: FloatArray
    background: FloatArray
    photons: FloatArray
    residual_power: float
    signal_power: float


def rerender_frame(
    photons_yx: NDArray[np.floating],
    xyz_nm: FloatArray,
    psf: PSF,
    *,
    grid_px: float = 40.0,
    reach_px: int = 45,
) -> Rerendered:
    """Fit non-negative photons of every emitter and a bilinear background grid to one frame.

    Parameters
    ----------
    photons_yx : (H, W)
        Photo-electrons.
    xyz_nm : (E, 3)
        Positions from the outer corner of the first pixel.
    psf
        The calibrated PSF.
    grid_px
        Largest spacing of the nodes of the background.
    reach_px
        Images of emitters are rendered this far from their pixel.

    Raises
    ------
    InputRejected
        If a position lies so far outside that none of its light reaches the frame.
    """
    height, width = photons_yx.shape
    data = np.asarray(photons_yx, dtype=np.float64).ravel()
    emitters = _emitter_images(xyz_nm, psf, (height, width), reach_px)
    if len(emitters) and (empty := np.flatnonzero(emitters.sum(1) <= 0)).size:
        raise InputRejected(
            f"{empty.size} localizations lie outside the frame of {width} x {height} pixels (the first at "
            f"{xyz_nm[empty[0], 0]:.0f}, {xyz_nm[empty[0], 1]:.0f} nm). Is it the table of this movie?"
        )
    design = np.concatenate([emitters, background_basis((height, width), grid_px)])
    coefficients = _non_negative(design, data)
    count = len(emitters)
    background = coefficients[count:] @ design[count:]
    model = coefficients[:count] @ design[:count] + background
    return Rerendered(
        model.reshape(height, width),
        background.reshape(height, width),
        coefficients[:count],
        float(((data - model) ** 2).sum()),
        float(((data - background) ** 2).sum()),
    )


def explained_signal(frames: list[Rerendered]) -> float | None:
    """1 - sum (data - model)^2 / sum (data - background)^2 over frames; None without any signal."""
    signal = sum(frame.signal_power for frame in frames)
    return 1.0 - sum(frame.residual_power for frame in frames) / signal if signal > 0 else None


def _emitter_images(xyz_nm: FloatArray, psf: PSF, shape: tuple[int, int], reach_px: int) -> FloatArray:
    """(E, H*W) images, each rendered in its own window."""
    height, width = shape
    images = np.zeros((len(xyz_nm), height, width))
    side = 2 * reach_px + 1
    corner = np.floor(xyz_nm[:, :2] / psf.pixel_nm).astype(int) - reach_px
    shifted = torch.tensor(xyz_nm, dtype=torch.float32)
    shifted[:, :2] = torch.as_tensor(xyz_nm[:, :2] - corner * psf.pixel_nm)
    with torch.no_grad():
        windows = psf.images(shifted, (side, side)).cpu().numpy()
    for image, window, (x0, y0) in zip(images, windows, corner, strict=True):
        rows, columns = slice(max(0, y0), min(height, y0 + side)), slice(max(0, x0), min(width, x0 + side))
        if rows.start < rows.stop and columns.start < columns.stop:
            image[rows, columns] = window[
                rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0
            ]
    return images.reshape(len(xyz_nm), height * width)


def background_basis(shape: tuple[int, int], grid_px: float) -> FloatArray:
    """(nodes, H*W) bilinear hat functions on a regular grid over the frame."""
    axes = []
    for length in shape:
        nodes = max(2, int(np.ceil(length / grid_px)) + 1)
        position = np.linspace(0, nodes - 1, length) if length > 1 else np.zeros(1)
        axes.append(np.clip(1 - np.abs(position - np.arange(nodes)[:, None]), 0, None))
    basis: FloatArray = np.einsum("iy,jx->ijyx", *axes).reshape(-1, shape[0] * shape[1])
    return basis


def _non_negative(design: FloatArray, data: FloatArray) -> FloatArray:
    """Non-negative least squares through the normal equations: the frame is far larger than the unknowns."""
    scale = 1.0 / np.sqrt((design**2).sum(1))
    scaled = design * scale[:, None]
    gram = scaled @ scaled.T
    gram[np.diag_indices_from(gram)] += 1e-9  # two emitters at one place share the light
    upper = np.linalg.cholesky(gram).T
    right = np.linalg.solve(upper.T, scaled @ data)
    solution: FloatArray = np.asarray(nnls(upper, right, maxiter=30 * len(gram))[0]) * scale
    return solution
