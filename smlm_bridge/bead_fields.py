"""Beads in images to localizations, to register two channels with."""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.camera import Camera
from smlm_bridge.detect import DetectOptions, crop_boxes, detect_frames
from smlm_bridge.errors import InputRejected
from smlm_bridge.fit import Spot, fit_boxes
from smlm_bridge.locs import validate

_THRESHOLD = "5*std(Wave.F1)"
_BOX_SIGMAS = 3.0
_LEAST_BOX_PX = 7
_LIGHT = 0.1  # of the median bead


def locate_beads(
    counts: NDArray[Any],
    *,
    pixel_nm: float,
    camera: Camera | None = None,
    sigma_nm: float = 130.0,
    frame: int = 0,
) -> pd.DataFrame:
    """Positions of beads in images, by fits of Gaussians of free width.

    Parameters
    ----------
    counts : (T, H, W)
        Images of one channel in ADU.
    pixel_nm
        Camera pixel in the sample.
    camera
        None takes counts for photo-electrons.
    sigma_nm
        About the width of a bead's image.
    frame
        Number of the first image, from 0.

    Returns
    -------
    DataFrame
        As in ``smlm_bridge.locs``; empty where no bead is found. Spots with less than a tenth of the median
        bead's light are left out.

    Raises
    ------
    InputRejected
        If a length is not above 0 or the images are not (T, H, W).
    """
    if not 0 < sigma_nm < math.inf:
        raise InputRejected(f"sigma_nm {sigma_nm:g} must be above 0 nm.")
    known = camera or Camera()
    found = detect_frames(counts, DetectOptions(threshold=_THRESHOLD), pixel_nm=pixel_nm, camera=known)
    size = max(_LEAST_BOX_PX, 2 * math.ceil(_BOX_SIGMAS * sigma_nm / pixel_nm) + 1)
    boxes, kept = crop_boxes(known.to_photons(counts), found, size)
    found = found[kept]
    corners = found[["row", "column"]].to_numpy(np.intp) - size // 2
    result = fit_boxes(boxes, corners, Spot(sigma_nm, pixel_nm), camera=known)
    table = result.table(found["frame"].to_numpy(np.int64) + frame)[result.ok]
    bright = table["photons"] > _LIGHT * table["photons"].median()
    return validate(table[bright])
