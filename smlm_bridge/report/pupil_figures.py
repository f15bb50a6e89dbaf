"""The pupil: phase, amplitude and Zernike coefficients."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from smlm_bridge.optics.pupil import Pupil
from smlm_bridge.optics.zernike import noll_to_nm, zernike_basis
from smlm_bridge.report.figures import BLUE, FONT_PT, colour_bar, new_figure, plain_axes, to_png

_FAMILIES: Final = ("spherical", "coma", "astigmatism", "trefoil", "tetrafoil", "pentafoil", "hexafoil")
_ORDINALS: Final = {2: "2nd", 3: "3rd"}
_AMPLITUDE_PERCENTILE: Final = 99.5  # single samples stick out where there is little light
_MOST_BARS: Final = 40
_LOW_ORDERS: Final = {1: "piston", 2: "tilt x", 3: "tilt y", 4: "defocus"}


def pupil_png(pupil: Pupil) -> bytes:
    """Wrapped phase (pixel-wise and Zernike part together) and amplitude inside the aperture."""
    axis = pupil.rho_axis
    x, y = np.meshgrid(axis, axis)
    noll = list(pupil.zernike_rad)
    phase = pupil.phase_rad + np.tensordot(
        list(pupil.zernike_rad.values()), zernike_basis(noll, x, y), axes=1
    )
    outside = np.hypot(x, y) > 1
    wrapped = np.where(outside, np.nan, np.angle(np.exp(1j * phase)))
    amplitude = np.where(outside, np.nan, pupil.amplitude)
    brightest = max(float(np.percentile(pupil.amplitude[~outside], _AMPLITUDE_PERCENTILE)), 1e-6)
    edge = axis[-1] + pupil.sample_pitch / 2
    figure = new_figure(9.4, 4.2)
    parts = (
        (wrapped, "phase", "twilight", (-math.pi, math.pi), "phase (rad)"),
        (amplitude, "amplitude", "cividis", (0.0, brightest), "amplitude transmission"),
    )
    for axes, (values, title, cmap, limits, label) in zip(figure.subplots(1, 2), parts, strict=True):
        shown = axes.imshow(
            values, cmap=cmap, vmin=limits[0], vmax=limits[1], extent=(-edge, edge, edge, -edge),
            interpolation="nearest",
        )  # fmt: skip
        axes.set_xlim(-1.03, 1.03)
        axes.set_ylim(1.03, -1.03)
        plain_axes(axes, title=title, x="x (radius of the pupil)", y="y (radius of the pupil)")
        colour_bar(figure, shown, axes, label, aspect=22)
    return to_png(figure)


def zernike_png(zernike_rad: Mapping[int, float], sigma_rad: Mapping[int, float] | None = None) -> bytes:
    """Bars of the Noll coefficients with their names and standard deviations; of many, the 40 largest."""
    largest = sorted(zernike_rad, key=lambda j: -abs(zernike_rad[j]))[:_MOST_BARS]
    noll = sorted(largest)
    figure = new_figure(10.0, 3.6)
    axes = figure.add_subplot()
    place = np.arange(len(noll))
    errors = None if sigma_rad is None else [sigma_rad.get(j, 0.0) for j in noll]
    axes.bar(place, [zernike_rad[j] for j in noll], yerr=errors, color=BLUE, width=0.7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(place, [zernike_name(j) for j in noll], rotation=60, ha="right", rotation_mode="anchor")
    rms = math.sqrt(sum(value**2 for value in zernike_rad.values()))
    plain_axes(
        axes, title=f"Zernike coefficients (Noll); RMS of all {rms:.2f} rad", y="coefficient (rad RMS)"
    )
    axes.tick_params(axis="x", labelsize=FONT_PT - 2)
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    return to_png(figure)


def zernike_name(noll: int) -> str:
    """Noll index and name, for example ``5 astigmatism sin`` (oblique; the cosine lies along x and y)."""
    if noll in _LOW_ORDERS:
        return f"{noll} {_LOW_ORDERS[noll]}"
    n, m = noll_to_nm(noll)
    order = abs(m)
    first = {0: 4, 1: 3}.get(order, order)
    rank = (n - first) // 2 + 1
    family = _FAMILIES[order] if order < len(_FAMILIES) else f"{order}-foil"
    part = "" if m == 0 else (" cos" if m > 0 else " sin")
    return f"{noll} {_ORDINALS.get(rank, f'{rank}th') + ' ' if rank > 1 else ''}{family}{part}"
