"""The names and order of the maps a dense localizer returns; no torch here."""

from typing import Final

MAP_NAMES: Final = (
    "probability",
    "dx_nm",
    "dy_nm",
    "z_nm",
    "photons",
    "sigma_x_nm",
    "sigma_y_nm",
    "sigma_z_nm",
    "sigma_photons",
    "background",
)
"""Per pixel: the probability of an emitter, its offset from the pixel's centre, height and photons, their
standard deviations, and the background in photo-electrons per pixel."""
