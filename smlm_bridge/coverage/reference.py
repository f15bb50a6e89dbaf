"""What a model's own training space looks like to the tests: learned once from held-out draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]

JOINT_FALSE_ALARMS: Final = 0.015
_COMPONENTS: Final = 24
_KNOTS: Final = 3  # of each covariate's polynomial
_LEAST_SPREAD: Final = 0.2
_CLIP: Final = 5.0  # a few misfits among the draws must not widen what is normal
_LEVELS: Final = 40


@dataclass(frozen=True)
class Expected:
    """A statistic's mean and spread for a given prediction: polynomials of the covariates.

    Parameters
    ----------
    low, high : (C,)
        Range of the covariates among the draws; predictions beyond count as at its end.
    mean, spread : (K,)
        Coefficients; the second those of the mean absolute deviation over its expectation.
    """

    low: Floats
    high: Floats
    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, values: Floats, covariates: Floats) -> "Expected":
        """Learn from draws: values (n,), covariates (n, C)."""
        low, high = np.quantile(covariates, [0.005, 0.995], axis=0)
        design = _design(covariates, low, high)
        mean = np.linalg.lstsq(design, values, rcond=None)[0]
        for _ in range(2):  # without the far tail
            away = values - design @ mean
            typical = 1.4826 * np.median(np.abs(away))
            mean = np.linalg.lstsq(
                design, design @ mean + np.clip(away, -4 * typical, 4 * typical), rcond=None
            )[0]
        away = np.abs(values - design @ mean)
        typical = max(float(np.median(away)), 1e-9)
        spread = np.linalg.lstsq(design, np.minimum(away, 6 * typical) * np.sqrt(np.pi / 2), rcond=None)[0]
        return cls(*(np.asarray(part, np.float64) for part in (low, high, mean, spread)))

    def standard(self, values: Floats, covariates: Floats) -> Floats:
        """(n,) values less what is expected, in standard deviations."""
        design = _design(covariates, self.low, self.high)
        spread = design @ self.spread
        return np.asarray((values - design @ self.mean) / np.maximum(spread, _LEAST_SPREAD * self._middle))

    @property
    def _middle(self) -> float:
        return max(float(self.spread[0]), 1e-9)


def _design(covariates: Floats, low: Floats, high: Floats) -> Floats:
    """(n, K) polynomials of covariates scaled to -1..1 over their range, and products of pairs."""
    width = np.maximum(high - low, 1e-9)
    x = np.clip(2 * (covariates - low) / width - 1, -1.0, 1.0)
    columns = [np.ones(len(x))]
    for i in range(x.shape[1]):
        columns += [x[:, i], x[:, i] ** 2 - 0.5, x[:, i] ** 3 - 0.6 * x[:, i]]
        columns += [x[:, i] * x[:, j] for j in range(i)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Familiar:
    """Where the network's features lie in training: main directions, and how far features stand off from them.

    Parameters
    ----------
    mean, scale : (F,)
        Of the features; a feature that never varies has the scale 0.
    axes : (K, F), variance : (K,)
        Main directions of the scaled features, and their variances.
    rest
        Mean square of what they leave.
    """

    mean: Floats
    scale: Floats
    axes: Floats
    variance: Floats
    rest: float

    @classmethod
    def of(cls, features: Floats) -> "Familiar":
        """Learn from draws (n, F)."""
        mean, spread = features.mean(0), features.std(0)
        varies = spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-12)
        scale = np.where(varies, 1 / np.maximum(spread, 1e-30), 0.0)
        standard = (features - mean) * scale
        _, size, axes = np.linalg.svd(standard, full_matrices=False)
        kept = min(_COMPONENTS, len(features) // 10, axes.shape[0])
        variance = size[:kept] ** 2 / len(features)
        left = standard - (standard @ axes[:kept].T) @ axes[:kept]
        return cls(mean, scale, axes[:kept], np.maximum(variance, 1e-12), float(np.mean(left**2)))

    def distance(self, features: Floats) -> Floats:
        """(n,) Mahalanobis distance (Mahalanobis 1936), all lesser directions taken with one variance."""
        standard = (features - self.mean) * self.scale
        along = standard @ self.axes.T
        left = standard - along @ self.axes
        total = (along**2 / self.variance).sum(1)
        if self.rest > 1e-9:
            total = total + (left**2).sum(1) / self.rest
        return np.asarray(np.sqrt(total))


@dataclass(frozen=True)
class Reference:
    """All that the check knows of a model's training space.

    Parameters
    ----------
    expected
        By statistic; ``features`` is the distance.
    familiar
        Of the features; None where the network could not be asked.
    tails
        By test, the scores at which ``levels`` of the draws are exceeded.
    limits
        By test, the score above which a box is flagged.
    boxes, side_px
        How many boxes were drawn, and their side.
    """

    expected: Mapping[str, Expected]
    familiar: Familiar | None
    limits: Mapping[str, float]
    boxes: int
    side_px: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, rounded to six digits."""
        return {
            "expected": {
                name: {k: _plain(getattr(one, k)) for k in ("low", "high", "mean", "spread")}
                for name, one in self.expected.items()
            },
            "familiar": None
            if self.familiar is None
            else {
                k: _plain(getattr(self.familiar, k)) for k in ("mean", "scale", "axes", "variance", "rest")
            },
            "limits": {name: float(f"{value:.6g}") for name, value in self.limits.items()},
            "boxes": self.boxes,
            "side_px": self.side_px,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Reference":
        """Read what ``to_json`` wrote.

        Raises
        ------
        InputRejected
            If a part is missing or of the wrong kind.
        """
        try:
            expected = {
                str(name): Expected(**{k: _array(one[k]) for k in ("low", "high", "mean", "spread")})
                for name, one in data["expected"].items()
            }
            known, familiar = data["familiar"], None
            if known is not None:
                arrays = {k: _array(known[k]) for k in ("mean", "scale", "axes", "variance")}
                familiar = Familiar(**arrays, rest=float(known["rest"]))
            limits = {str(name): float(value) for name, value in data["limits"].items()}
            return cls(expected, familiar, limits, int(data["boxes"]), int(data["side_px"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputRejected(
                f"the statistics of the training inside the model are damaged ({error!r}). Train it again, or "
                "localize with --no-coverage."
            ) from error


def joint_limits(scores: Mapping[str, Floats], *, share: float = JOINT_FALSE_ALARMS) -> dict[str, float]:
    """Limits at one level for all tests, such that together they flag ``share`` of the draws.

    Parameters
    ----------
    scores
        By test, (n,) scores of draws that took no part in learning what is expected.
    """
    low, high = share / max(len(scores), 1) / 4, share
    for _ in range(_LEVELS):
        level = (low + high) / 2
        limits = {name: float(np.quantile(values, 1 - level)) for name, values in scores.items()}
        flagged = np.any([values > limits[name] for name, values in scores.items()], axis=0)
        low, high = (level, high) if flagged.mean() < share else (low, level)
    return limits


def _plain(value: Floats | float) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_plain(row) if isinstance(row, np.ndarray) else float(f"{row:.6g}") for row in value]


def _array(value: Any) -> Floats:
    found = np.asarray(value, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError("a number is not finite")
    return found
