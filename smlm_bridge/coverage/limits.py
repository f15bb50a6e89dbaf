"""What a model was trained for, as plain ranges, and how far a prediction lies outside of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gamma, poisson

from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]
Span = tuple[float, float]

QUANTITIES: Final = ("z_nm", "photons", "background")
_UNLIKELY: Final = 1e-4  # share of a gamma law's emitters that may lie above its upper end here
_TOLERANCE: Final = {"z_nm": 0.01, "photons": 0.03, "background": 0.03}  # of the range (z) or of its ends
_EDGE: Final = 0.02  # of the range of heights: where localizations pile up that belong beyond
_BESIDE: Final = 0.10
_PILE: Final = 3.0


@dataclass(frozen=True)
class Allowed:
    """What a model was trained for.

    Parameters
    ----------
    z_nm, photons, background, density_um2
        Ends of the ranges; photons of what the model answers for, background with all its parts.
    read_noise_e
        Read noise beyond the camera's.
    """

    z_nm: Span
    photons: Span
    background: Span
    density_um2: Span
    read_noise_e: Span

    @classmethod
    def of(cls, ranges: Mapping[str, Any], z_range_nm: Span) -> "Allowed":
        """From ``ModelInfo.ranges``; what they do not declare is not limited, heights by the calibration.

        Raises
        ------
        InputRejected
            If a range is not two numbers.
        """
        try:
            first, second = (float(v) for v in ranges.get("photons", (0.0, np.inf)))
            least = float(ranges.get("label_min_photons", 0.0))
            if ranges.get("photons_law") == "gamma":
                photons = (least, float(gamma.ppf(1 - _UNLIKELY, first, scale=second)))
            else:
                photons = (max(first, least), second)
            light = ranges.get("background", {})
            low, high = (float(v) for v in light.get("constant", (0.0, np.inf)))
            parts = [float(light.get("gradient", 0.0))]
            parts += [float(light.get(name, (0.0, 0.0))[1]) for name in ("glow", "perlin")]
            spans = {
                name: (float(low_end), float(high_end))
                for name, (low_end, high_end) in {
                    "z_nm": ranges.get("z_nm", z_range_nm),
                    "density_um2": ranges.get("density_um2", (0.0, np.inf)),
                    "read_noise_e": ranges.get("read_noise_e", (0.0, 0.0)),
                }.items()
            }
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputRejected(
                f"the training ranges inside the model cannot be read ({error}); a range is two numbers, the "
                "lower first. Train the model again with this program."
            ) from error
        return cls(photons=photons, background=(low, high + sum(parts)), **spans)

    @property
    def spans(self) -> dict[str, Span]:
        """By the names of ``QUANTITIES``."""
        return {"z_nm": self.z_nm, "photons": self.photons, "background": self.background}


def outside(quantities: Floats, sigma: Floats, allowed: Allowed) -> Floats:
    """(n, 3) how far ``QUANTITIES`` lie beyond the nearer end, in standard deviations; negative inside.

    Parameters
    ----------
    quantities, sigma : (n, 3)
        Height (nm), photons and background, and their standard deviations.
    allowed
        The ranges; ends get a tolerance.
    """
    columns = []
    for i, (name, (low, high)) in enumerate(allowed.spans.items()):
        width = high - low if name == "z_nm" and np.isfinite(high - low) else 0.0
        slack = [_TOLERANCE[name] * (width if name == "z_nm" else abs(end)) for end in (low, high)]
        below = (low - quantities[:, i]) / np.hypot(sigma[:, i], slack[0])
        above = (
            (quantities[:, i] - high) / np.hypot(sigma[:, i], slack[1])
            if np.isfinite(high)
            else np.full(len(below), -np.inf)
        )
        columns.append(np.maximum(below, above))
    return np.asarray(np.clip(np.stack(columns, axis=1), -50.0, 1e6))


def piled_up(z_nm: Floats, span: Span) -> tuple[bool, bool]:
    """Whether localizations crowd at the lower and at the upper end of the heights, beyond chance."""
    width = span[1] - span[0]
    if not len(z_nm) or width <= 0:
        return False, False
    found = []
    for distance in ((z_nm - span[0]) / width, (span[1] - z_nm) / width):
        at_edge = int(np.count_nonzero(distance < _EDGE))
        beside = int(np.count_nonzero((distance >= _EDGE) & (distance < _BESIDE)))
        expected = max(1.0, beside * _EDGE / (_BESIDE - _EDGE), len(z_nm) * _EDGE)
        found.append(at_edge > _PILE * expected and poisson.sf(at_edge - 1, expected) < 1e-3)
    return bool(found[0]), bool(found[1])
