"""Decode the volume of one frame into emitters; compiled, no torch."""

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.networks.peaks import centres_of_gravity, find_peaks
from smlm_bridge.networks.volume_grid import VolumeGrid


def decode_volume(
    volume: NDArray[np.float32], grid: VolumeGrid, *, pixel_nm: float, threshold: float
) -> dict[str, NDArray[np.float64]]:
    """Emitters of a volume: local maxima above the threshold, at the centre of gravity around them.

    Two emitters within ``grid.radius`` voxels of each other are one peak or draw each other's centres
    (Nehme et al. 2020 do it this way); a position is never better than the grid lets it be.

    Parameters
    ----------
    volume : (D, H, W)
        Of one frame.
    grid
        Its voxels.
    pixel_nm
        Camera pixel.
    threshold
        Least value of a peak over ``grid.height``.

    Returns
    -------
    Arrays (E,) in reading order of the peaks: ``x_nm`` and ``y_nm`` from the outer corner of the first voxel,
    ``z_nm``, ``confidence`` (value of the peak over ``grid.height``, no probability), and ``row`` and ``column``
    of the peak's voxel.
    """
    peaks = find_peaks(volume, threshold=threshold * grid.height, radius=grid.radius)
    centres = centres_of_gravity(volume, peaks, radius=grid.radius)
    side = pixel_nm / grid.upsampling
    return {
        "x_nm": (centres[:, 2] + 0.5) * side,
        "y_nm": (centres[:, 1] + 0.5) * side,
        "z_nm": grid.z_nm[0] + (centres[:, 0] + 0.5) * grid.plane_nm,
        "confidence": volume[tuple(peaks.T)].astype(np.float64) / grid.height,
        "row": peaks[:, 1].astype(np.float64),
        "column": peaks[:, 2].astype(np.float64),
    }
