"""A pupil's phase and amplitude on the sampling of another program."""

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import zernike_basis

Floats = NDArray[np.float64]


def on_grid(pupil: Pupil, rho_axis: Floats) -> tuple[Floats, Floats]:
    """Total phase (rad) and amplitude at the points (y, x) of a square grid, in units of the pupil radius.

    On the pupil's own samples they are taken as they are; in between the field exp(i phase) is interpolated
    linearly, so that a step of 2 pi is none.
    """
    y, x = np.meshgrid(rho_axis, rho_axis, indexing="ij")
    nolls = sorted(pupil.zernike_rad)
    zernikes = np.tensordot([pupil.zernike_rad[j] for j in nolls], zernike_basis(nolls, x, y), axes=1)
    position = rho_axis / pupil.sample_pitch + (pupil.phase_rad.shape[0] - 1) / 2
    index = np.round(position).astype(int)
    own = np.abs(position - index).max() < 1e-6 and index.min() >= 0
    if own and index.max() < pupil.phase_rad.shape[0]:
        inside = np.ix_(index, index)
        return pupil.phase_rad[inside] + zernikes, pupil.amplitude[inside]
    if not pupil.phase_rad.any():  # nothing but Zernikes: exact on any grid
        return zernikes, _interpolated(pupil.amplitude, position)
    field = np.exp(1j * pupil.phase_rad)
    turned = _interpolated(field.real, position) + 1j * _interpolated(field.imag, position)
    return np.angle(turned) + zernikes, _interpolated(pupil.amplitude, position)


def _interpolated(values: Floats, position: Floats) -> Floats:
    from scipy.ndimage import map_coordinates

    rows, columns = np.meshgrid(position, position, indexing="ij")
    result: Floats = map_coordinates(values, [rows, columns], order=1, mode="nearest")
    return result
