"""Decode the maps of a dense localizer into emitters; vectorised numpy, no torch."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from smlm_bridge.networks.maps import MAP_NAMES

_INDEX = {name: i for i, name in enumerate(MAP_NAMES)}
_BEFORE = np.array([[[1, 1, 1], [1, 0, 0], [0, 0, 0]]], bool)  # neighbours earlier in reading order
_LEAST_PEAK = 0.1  # share of the threshold a peak needs on its own: nine pixels add up


def decode(
    maps: NDArray[np.float32], *, pixel_nm: float, threshold: float = 0.5
) -> dict[str, NDArray[np.float64]]:
    """Emitters where the probability, summed over 3 x 3 pixels around a local maximum, exceeds ``threshold``.

    An emitter near the border of two pixels shares its probability between them, so its values are the mean
    over the 3 x 3 pixels, weighted by probability and lateral precision. Of neighbours with the very same
    probability the first in reading order is the maximum, so that no emitter is found twice.

    Parameters
    ----------
    maps : (B, 10, H, W)
        In the order of ``MAP_NAMES``.
    pixel_nm
        Camera pixel.
    threshold
        Least summed probability.

    Returns
    -------
    Arrays (E,) sorted by image, row and column: ``image`` (index in the batch), ``x_nm`` and ``y_nm`` from
    the outer corner of the first pixel, ``probability``, and every map from ``z_nm`` on under its own name.
    """
    probability = maps[:, _INDEX["probability"]]
    height, width = probability.shape[1:]
    padded = np.pad(probability.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    summed = np.sum(shifts, axis=0)
    before = maximum_filter(probability, footprint=_BEFORE, mode="constant")
    after = maximum_filter(probability, footprint=_BEFORE[:, ::-1, ::-1], mode="constant")
    peak = (probability > before) & (probability >= after)
    found = peak & (summed > threshold) & (probability > _LEAST_PEAK * threshold)
    image, row, column = np.nonzero(found)
    values = _average(maps, image, row, column, pixel_nm)
    values["probability"] = np.minimum(summed[image, row, column], 1.0)
    values["image"] = image.astype(np.float64)
    return values


def _average(
    maps: NDArray[np.float32],
    image: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    pixel_nm: float,
) -> dict[str, NDArray[np.float64]]:
    height, width = maps.shape[2:]
    step = np.arange(-1, 2)
    rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    near = maps[
        image[:, None, None, None],
        np.arange(len(MAP_NAMES))[:, None, None],
        rows.clip(0, height - 1)[:, None],
        columns.clip(0, width - 1)[:, None],
    ].astype(np.float64)
    weight = near[:, _INDEX["probability"]] * inside
    weight /= near[:, _INDEX["sigma_x_nm"]] * near[:, _INDEX["sigma_y_nm"]]
    weight /= weight.sum((1, 2), keepdims=True)
    values = {name: (near[:, i] * weight).sum((1, 2)) for name, i in _INDEX.items()}
    dx, dy = values.pop("dx_nm"), values.pop("dy_nm")
    values["x_nm"] = dx + ((columns + 0.5) * pixel_nm * weight).sum((1, 2))
    values["y_nm"] = dy + ((rows + 0.5) * pixel_nm * weight).sum((1, 2))
    return values
