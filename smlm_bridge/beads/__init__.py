"""Calibrations from averaged beads: a cubic spline, or the widths of an astigmatic Gaussian over z."""

from smlm_bridge.beads.calibrate import BeadOptions, BeadResult, calibrate_beads

__all__ = ["BeadOptions", "BeadResult", "calibrate_beads"]
