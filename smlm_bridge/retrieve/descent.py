"""L-BFGS (Nocedal 1980) of one vector in single precision.

Vectors are short and evaluations cheap in retrieval: torch's own, tensor by tensor, took as long as the model.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Function = Callable[[Vector], tuple[float, Vector]]

_HISTORY = 20
_ENOUGH_DECREASE, _ENOUGH_TURN = 1e-4, 0.9  # Wolfe's conditions, as Nocedal & Wright 2006, eq. 3.6
_LONGER = (1.5, 10.0)  # a step that stops short of the minimum grows by a factor within these
_INSIDE = 0.1  # of an interval: how close to its ends the next trial may lie
_TRIALS = 20
_STILL = 1e-9  # largest slope, and change of the value, of a minimum


@np.errstate(over="ignore", invalid="ignore")  # a trial too far is found out by its value
def descend(function: Function, start: Vector, *, iterations: int, evaluations: int) -> None:
    """Call ``function``, which gives value and gradient, at ever better points until one of the limits."""
    counted = _Counted(function, evaluations)
    x = start
    value, gradient = counted(x)
    steps: deque[tuple[Vector, Vector, float]] = deque(maxlen=_HISTORY)
    for _ in range(iterations):
        if np.abs(gradient).max(initial=0.0) <= _STILL or counted.spent:
            return
        direction = _newton_like(gradient, steps)
        slope = float(direction @ gradient)
        if slope >= 0:  # rounding; the history is worth nothing any more
            steps.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        first = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        found = _along(counted, x, direction, value, slope, first)
        if found is None:
            return
        step, new_value, new_gradient = found
        moved, changed = step * direction, new_gradient - gradient
        if (product := float(moved @ changed)) > 1e-10:
            steps.append((moved, changed, product))
        still = abs(new_value - value) < _STILL
        x, value, gradient = x + moved, new_value, new_gradient
        if still:
            return


class _Counted:
    """A function that knows how often it may still be called."""

    def __init__(self, function: Function, limit: int) -> None:
        self._function, self._left = function, limit

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def __call__(self, x: Vector) -> tuple[float, Vector]:
        self._left -= 1
        return self._function(x)


def _newton_like(gradient: Vector, steps: deque[tuple[Vector, Vector, float]]) -> Vector:
    """Minus the inverse Hessian that the steps let one guess, times the gradient (two-loop recursion)."""
    q = -gradient
    shares = []
    for moved, changed, product in reversed(steps):
        share = float(moved @ q) / product
        q -= np.float32(share) * changed
        shares.append(share)
    if steps:
        _, changed, product = steps[-1]
        q *= np.float32(product / float(changed @ changed))
    for (moved, changed, product), share in zip(steps, reversed(shares), strict=True):
        q += np.float32(share - float(changed @ q) / product) * moved
    return q


def _along(
    function: _Counted, x: Vector, direction: Vector, value: float, slope: float, step: float
) -> tuple[np.float32, float, Vector] | None:
    """Step, value and gradient where Wolfe's conditions hold, or the best met; None if nothing is lower."""
    low: tuple[float, float, float] = (0.0, value, slope)
    high: tuple[float, float, float] | None = None
    best: tuple[np.float32, float, Vector] | None = None
    for _ in range(_TRIALS):
        if function.spent:
            break
        new_value, gradient = function(x + np.float32(step) * direction)
        new_slope = float(gradient @ direction)
        here = (step, new_value, new_slope)
        if new_value < (value if best is None else best[1]):
            best = (np.float32(step), new_value, gradient)
        if not new_value <= value + _ENOUGH_DECREASE * step * slope:  # nor is a value that is not a number
            high = here
        elif new_slope >= _ENOUGH_TURN * slope:
            return np.float32(step), new_value, gradient
        else:
            before, low = low, here
        if high is None:
            guess = _lowest(before, low)
            step = float(np.clip(guess if guess > low[0] else np.inf, _LONGER[0] * step, _LONGER[1] * step))
        else:
            width = high[0] - low[0]
            step = float(np.clip(_lowest(low, high), low[0] + _INSIDE * width, high[0] - _INSIDE * width))
    return best


def _lowest(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Where the cubic through two points (step, value, slope) is lowest (Nocedal & Wright 2006, eq. 3.59)."""
    (a, fa, da), (b, fb, db) = one, other
    middle = 0.5 * (a + b)
    if a == b or not np.isfinite([fa, fb, da, db]).all():
        return middle
    d = da + db - 3 * (fa - fb) / (a - b)
    root = d * d - da * db
    if root < 0:
        return middle
    turn = np.sign(b - a) * np.sqrt(root)
    below = db - da + 2 * turn
    return float(b - (b - a) * (db + turn - d) / below) if below else middle
