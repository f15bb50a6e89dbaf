"""Is this model meant for these data? See ``check``."""

from smlm_bridge.coverage.check import (
    QUICK,
    CoverageOptions,
    check_localized,
    coverage,
    localized_sample,
    reference_of,
)
from smlm_bridge.coverage.verdict import Coverage, Worst

__all__ = [
    "QUICK",
    "Coverage",
    "CoverageOptions",
    "Worst",
    "check_localized",
    "coverage",
    "localized_sample",
    "reference_of",
]
