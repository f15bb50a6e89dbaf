"""How well two channels lie on each other, as a picture."""

import numpy as np
from matplotlib.patches import Circle

from smlm_bridge.register import Registration
from smlm_bridge.report.figures import (
    BLUE,
    FONT_PT,
    GREY,
    ORANGE,
    new_figure,
    plain_axes,
    round_length,
    to_png,
)

_MOST_ARROWS = 1000
_ARROW_SHARE = 0.06  # of the field, for an arrow as long as the registration error
_MARGIN = 0.1  # of the field, for arrows that point outwards
_REACH = 3.0  # registration errors


def registration_png(registration: Registration) -> bytes:
    """Draw the errors of held-out beads: as arrows over the field of channel 1, and around the origin.

    Returns
    -------
    A PNG.
    """
    figure = new_figure(9.0, 4.4)
    field, cloud = figure.subplots(1, 2)
    error = max(registration.target_registration_error_nm, 1e-9)
    shown = np.linspace(0, len(registration.xy_nm) - 1, min(len(registration.xy_nm), _MOST_ARROWS)).astype(
        int
    )
    place, away = registration.xy_nm[shown] / 1000, registration.held_out_nm[shown]
    extent = max(float(np.ptp(place, axis=0).max()), 1e-3)
    arrows = field.quiver(
        *place.T, *away.T, color=BLUE, angles="xy", scale_units="xy", scale=error / (_ARROW_SHARE * extent)
    )
    key = round_length(error)
    field.quiverkey(
        arrows, 0.85, 1.03, key, f"{key:g} nm", labelpos="E", fontproperties={"size": FONT_PT - 1}
    )
    field.margins(_MARGIN)
    field.set_aspect("equal", adjustable="datalim")
    field.invert_yaxis()
    plain_axes(
        field, title=f"{registration.beads} beads held out", x="x in channel 1 / µm", y="y / µm (down)"
    )
    cloud.plot(*registration.held_out_nm.T, ".", color=GREY, ms=3)
    cloud.add_patch(Circle((0, 0), error, fill=False, color=ORANGE, lw=1.5))
    reach = _REACH * error
    cloud.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
    spread = registration.target_registration_error_sd_nm
    plain_axes(
        cloud,
        title=f"registration error {registration.target_registration_error_nm:.3g} ± {spread:.2g} nm rms",
        x="error in x / nm",
        y="error in y / nm (down)",
    )
    return to_png(figure, dpi=150)
