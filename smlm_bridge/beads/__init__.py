"""Calibrations from averaged beads: a cubic spline, or the widths of an astigmatic Gaussian over z."""

from smlm_bridge.beads.calibrate import BeadOptions, BeadResult, calibrate_beads
from smlm_bridge.beads.pairs import BeadPairResult, calibrate_bead_pair

__all__ = ["BeadOptions", "BeadPairResult", "BeadResult", "calibrate_bead_pair", "calibrate_beads"]
