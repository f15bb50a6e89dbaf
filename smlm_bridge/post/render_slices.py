"""A table as a stack of pictures, one a slice of z."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.post.render import MAX_PIXELS, Method, picture_shape, render


def render_slices(
    locs: pd.DataFrame,
    edges_nm: tuple[float, ...],
    *,
    pixel_nm: float,
    field_nm: tuple[float, float],
    method: Method = "gaussian",
    origin_nm: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32]:
    """Render every slice of z by itself.

    Parameters
    ----------
    locs
        A table with z.
    edges_nm : (slices + 1,)
        Ascending heights; a slice holds its lower edge, not its upper one. What lies outside is left out.
    pixel_nm, field_nm, method, origin_nm
        As in ``render``.

    Returns
    -------
    (slices, H, W): localizations per pixel.

    Raises
    ------
    InputRejected
        If the table has no z, the edges do not ascend, or the stack would have more than 400 million pixels.
    """
    table = validate(locs)
    if "z_nm" not in table:
        raise InputRejected("this table has no z to cut into slices; give one with z_nm, or render it flat.")
    edges = np.asarray(edges_nm, np.float64)
    if edges.size < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise InputRejected(
            f"slices need two ascending heights or more in nm, got {edges.size}; for example -500:500:100."
        )
    shape = picture_shape(pixel_nm, field_nm)
    count = edges.size - 1
    if count * shape[0] * shape[1] > MAX_PIXELS:
        raise InputRejected(
            f"{count} slices of {shape[1]} x {shape[0]} pixels are more than {MAX_PIXELS / 1e6:.0f} million; take "
            "fewer slices, a larger pixel_nm or a smaller field."
        )
    stack = np.empty((count, *shape), np.float32)
    number = np.searchsorted(edges, table["z_nm"].to_numpy(), side="right") - 1
    flat = table.drop(columns="z_nm")
    for index in range(count):
        part = flat[number == index]
        picture = render(part, pixel_nm=pixel_nm, field_nm=field_nm, method=method, origin_nm=origin_nm)
        stack[index] = picture.counts
    return stack
