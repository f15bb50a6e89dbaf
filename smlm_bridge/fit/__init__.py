"""Maximum-likelihood fits of single emitters: thousands of boxes at once, each with its bound and its verdict."""

from smlm_bridge.fit.fit import fit_boxes
from smlm_bridge.fit.models import AstigmaticSpot, Channels, Spot
from smlm_bridge.fit.options import FitOptions
from smlm_bridge.fit.result import MESSAGES, FitResult, Status
from smlm_bridge.fit.work import FitMovieOptions, fit_work

__all__ = [
    "MESSAGES",
    "AstigmaticSpot",
    "Channels",
    "FitMovieOptions",
    "FitOptions",
    "FitResult",
    "Spot",
    "Status",
    "fit_boxes",
    "fit_work",
]
