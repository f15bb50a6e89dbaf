"""Pictures and self-contained pages about calibrations and localizations; the one room that plots.

Figures are made from ``matplotlib.figure.Figure`` directly: no pyplot, no window, no state shared between
calls.
"""

from smlm_bridge.report.calibration import calibration_page
from smlm_bridge.report.crlb import crlb_plot_png
from smlm_bridge.report.localizations import localization_page
from smlm_bridge.report.preview import preview_png

__all__ = ["calibration_page", "crlb_plot_png", "localization_page", "preview_png"]
