"""Boxes around localizations: data, what the network predicted, and what else shines into them."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """One box an emitter; positions from the outer corner of each box's first pixel.

    Parameters
    ----------
    photons, read_variance : (n, S, S)
        Photo-electrons, and the variance of the read noise.
    xyz_nm : (n, 3 + J)
        Predicted position, and aberrations of a network that gives them.
    photons_found, background_found, sigma_z_nm : (n,)
        What else was predicted.
    near_box : (m,), near_xyz_nm : (m, 3 + J), near_photons : (m,)
        Other localizations whose light may reach a box: which box, and where.
    features : (n, F)
        What the network sees before its last layer; (n, 0) where it cannot be asked.
    frame : (n,), corner_px : (n, 2)
        Frame within the movie; column and row of each box's first pixel in what was read.
    parts
        Of two channels, each channel's own boxes of the same emitters; these are then those of the first, with
        photons of both.
    """

    photons: NDArray[np.float32]
    read_variance: NDArray[np.float32]
    xyz_nm: Floats
    photons_found: Floats
    background_found: Floats
    sigma_z_nm: Floats
    near_box: NDArray[np.int64]
    near_xyz_nm: Floats
    near_photons: Floats
    features: Floats
    frame: NDArray[np.int64]
    corner_px: NDArray[np.int64]
    parts: "tuple[Boxes, ...]" = ()

    def __len__(self) -> int:
        return len(self.photons)

    @classmethod
    def joined(cls, parts: "list[Boxes]") -> "Boxes":
        """All boxes of several, in order."""
        before = np.cumsum([0, *map(len, parts)])
        shifted = [part.near_box + first for part, first in zip(parts, before, strict=False)]
        filled = [part for part in parts if len(part)] or parts[:1]
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in filled])
            for f in fields(cls)
            if f.name != "parts"
        }
        channels = tuple(cls.joined([part.parts[c] for part in parts]) for c in range(len(parts[0].parts)))
        return cls(**{**columns, "near_box": np.concatenate(shifted)}, parts=channels)


def inside(xy_nm: Floats, *, side_px: int, pixel_nm: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(n,) whether the box of each position lies within a frame of rows and columns ``shape``."""
    corner = np.floor(xy_nm / pixel_nm).astype(np.int64) - side_px // 2
    return np.asarray(((corner >= 0) & (corner + side_px <= np.array(shape[::-1]))).all(axis=1))


def cut_boxes(
    photons: NDArray[np.float32],
    read_variance: NDArray[np.floating],
    table: pd.DataFrame,
    chosen: NDArray[np.int64],
    *,
    side_px: int,
    pixel_nm: float,
    frame: int,
    features: Floats | None = None,
) -> Boxes:
    """The boxes of one frame.

    Parameters
    ----------
    photons, read_variance : (H, W)
        The frame in photo-electrons, and the variance of its read noise.
    table
        All localizations of the frame, x and y from its corner.
    chosen
        Rows of the table whose boxes are cut; they lie ``inside``.
    side_px, pixel_nm
        Side of a box, odd; the camera pixel.
    frame
        Its number.
    features : (n, F)
        Of the chosen ones.
    """
    xyz = positions(table)
    corner = np.floor(xyz[chosen, :2] / pixel_nm).astype(np.int64) - side_px // 2
    rows = corner[:, 1, None, None] + np.arange(side_px)[:, None]
    columns = corner[:, 0, None, None] + np.arange(side_px)
    local = xyz[chosen]
    local[:, :2] -= corner * pixel_nm
    away = np.abs(xyz[None, :, :2] - xyz[chosen, None, :2]).max(axis=2)
    close = away < side_px * pixel_nm
    close[np.arange(len(chosen)), chosen] = False
    box, other = np.nonzero(close)
    near = xyz[other]
    near[:, :2] -= corner[box] * pixel_nm
    light = np.maximum(table["photons"].to_numpy(np.float64), 1.0)
    noise = np.broadcast_to(np.asarray(read_variance, np.float32), photons.shape)
    return Boxes(
        photons=photons[rows, columns],
        read_variance=noise[rows, columns],
        xyz_nm=local,
        photons_found=light[chosen],
        background_found=_column(table, "background")[chosen],
        sigma_z_nm=_column(table, "uncertainty_z_nm")[chosen],
        near_box=box.astype(np.int64),
        near_xyz_nm=near,
        near_photons=light[other],
        features=np.zeros((len(chosen), 0)) if features is None else features,
        frame=np.full(len(chosen), frame, np.int64),
        corner_px=corner,
    )


def positions(table: pd.DataFrame) -> Floats:
    """(n, 3 + J) x, y, z and aberrations of a table."""
    names = ["x_nm", "y_nm", "z_nm", *(name for name in table if str(name).startswith("zernike_"))]
    return table[names].to_numpy(np.float64).copy()


def _column(table: pd.DataFrame, name: str) -> Floats:
    return table[name].to_numpy(np.float64) if name in table else np.zeros(len(table))
