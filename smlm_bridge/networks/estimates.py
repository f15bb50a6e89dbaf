"""The names and order of what a network of single emitters returns; no torch here."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

PARAMETERS: Final = ("dx_nm", "dy_nm", "z_nm", "photons", "background")
"""Offsets of the emitter from the box's centre, height, photons, and background in photo-electrons per pixel."""


def estimate_names(zernike_rad: Iterable[Sequence[Any]] = ()) -> tuple[str, ...]:
    """Names of the estimates of a network: its parameters, then their standard deviations.

    Parameters
    ----------
    zernike_rad
        Rows of ``SingleRanges.zernike_rad``: the first number of each is a Noll index.
    """
    names = (*PARAMETERS, *(f"zernike_{int(row[0])}_rad" for row in zernike_rad))
    return (*names, *(f"sigma_{name}" for name in names))
