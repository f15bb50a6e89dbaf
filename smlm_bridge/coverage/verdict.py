"""The verdict: a traffic light, its reasons in plain words, the worst boxes, ranges that would hold the data."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.coverage.boxes import Boxes
from smlm_bridge.coverage.limits import QUANTITIES, Allowed
from smlm_bridge.coverage.scoring import Scores

Floats = NDArray[np.float64]
Light = Literal["green", "yellow", "red", "unknown"]

YELLOW, RED = 0.05, 0.20
GALLERY: Final = 12
_FOR_A_SET: Final = 50
_SHIFT: Final = 0.5  # standard deviations of one box that the mean of all may be off
_WORTH: Final = 0.04  # flagged fraction of one test that is worth a sentence
_DENSE: Final = 0.05  # share of frames that are denser than trained
_WIDER: Final = 0.2  # of the range of heights: a network cannot say how far beyond an emitter stands
_UNITS: Final = {"z_nm": "nm", "photons": "photo-electrons", "background": "photo-electrons a pixel"}
_NAMES: Final = {"z_nm": "height", "photons": "brightness", "background": "background"}
_MEANING: Final = {
    "z_nm": "beyond its range a network still answers, with heights that are not there. Train with a wider range "
    "of z, or move the focus.",
    "photons": "precision and detection are not tested there. Check gain and offset of the camera first; if they "
    "are right, train with a wider range of photons.",
    "background": "precision and detection are not tested there. Check offset and gain of the camera first; if "
    "they are right, train with a wider range of background.",
}
_TESTS: Final = {
    "deviance": "rendered again with the model's PSF, differ from the data by more than noise",
    "likelihood": "would fit the data much better with the emitter elsewhere",
    "aberration": "leave a residual like that of an aberration",
    "features": "look unfamiliar inside the network",
}
_CAUSE: Final = (
    "the PSF (aberrations, focus), the background's structure or the number of emitters is not what the model was "
    "trained for. Look at the worst boxes; calibrate with beads of the same day and train again, or use --refine "
    "where emitters were missed."
)


@dataclass(frozen=True)
class Worst:
    """A box of the gallery.

    Parameters
    ----------
    frame, xyz_nm
        Where: position from the corner of the box.
    score, why
        Above 1 it is flagged; by which test.
    data, read_variance, model : (S, S)
        Photo-electrons, their read noise, and what was rendered; None without rendering.
    """

    frame: int
    xyz_nm: tuple[float, float, float]
    score: float
    why: str
    data: NDArray[np.float32]
    read_variance: float
    model: NDArray[np.float32] | None


@dataclass(frozen=True)
class Coverage:
    """The verdict.

    Parameters
    ----------
    light
        ``green``, ``yellow``, ``red``, or ``unknown`` where too little was there to judge.
    flagged_fraction
        Of the boxes; None where none was judged.
    reasons
        In plain words: what was seen, what it means, what to do.
    boxes
        Boxes that were judged.
    by_test
        Flagged fraction by test.
    shifts
        By test, the mean over all boxes in standard deviations of one box; empty of fewer than 50.
    suggested_ranges
        Training ranges that would hold these data.
    worst
        The worst boxes, worst first.
    """

    light: Light
    flagged_fraction: float | None
    reasons: tuple[str, ...]
    boxes: int = 0
    by_test: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)
    suggested_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    worst: tuple[Worst, ...] = ()

    @property
    def headline(self) -> str:
        """The light and the flagged fraction in one line."""
        if self.flagged_fraction is None:
            return self.light
        return f"{self.light}, {self.flagged_fraction:.1%} of {self.boxes} boxes flagged"

    def to_json(self) -> dict[str, Any]:
        """Without the pictures."""
        return {
            "light": self.light,
            "flagged_fraction": self.flagged_fraction,
            "reasons": list(self.reasons),
            "boxes": self.boxes,
            "by_test": self.by_test,
            "shifts": self.shifts,
            "suggested_ranges": {name: list(span) for name, span in self.suggested_ranges.items()},
        }


@dataclass(frozen=True)
class Findings:
    """What the whole table shows.

    Parameters
    ----------
    piled
        Whether heights crowd at the lower and at the upper end of their range.
    dense
        Share of the frames that hold more emitters than was trained for.
    density_um2
        Of the fullest frame.
    notes
        Why some tests could not be done.
    stops
        What is known to be wrong without looking at a box.
    """

    piled: tuple[bool, bool] = (False, False)
    dense: float = 0.0
    density_um2: float = 0.0
    notes: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()


def verdict(
    scores: Scores,
    boxes: Boxes,
    model: Floats | None,
    quantities: Floats,
    allowed: Allowed,
    findings: Findings,
) -> Coverage:
    """The verdict about scored boxes.

    Parameters
    ----------
    scores, boxes
        The boxes.
    model : (n, S, S)
        What was rendered; None without rendering.
    quantities : (n, 3)
        Heights, photons and background.
    allowed, findings
        The training ranges; what the whole table shows.
    """
    combined = scores.combined
    fraction = float(np.mean(combined > 1.0))
    by_test = {name: float(np.mean(part > 1.0)) for name, part in scores.by_test.items()}
    by_quantity = {name: float(np.mean(part > 1.0)) for name, part in scores.by_quantity.items()}
    shifts = {}
    if len(boxes) >= _FOR_A_SET:
        shifts = {name: float(np.mean(np.clip(part, -5.0, 5.0))) for name, part in scores.standard.items()}
    warnings = (*table_warnings(findings, allowed), *_of_set(shifts, fraction))
    reasons = (*findings.stops, *warnings, *_of_boxes(by_test, by_quantity, quantities, allowed))
    light = light_of(fraction, warned=bool(warnings), stopped=bool(findings.stops))
    if not reasons:
        reasons = (_plain(light, fraction),)
    order = np.argsort(-combined, kind="stable")[:GALLERY]
    worst = tuple(
        Worst(
            int(boxes.frame[i]),
            (float(boxes.xyz_nm[i, 0]), float(boxes.xyz_nm[i, 1]), float(boxes.xyz_nm[i, 2])),
            float(combined[i]),
            scores.worst_test(int(i)),
            boxes.photons[i],
            float(np.mean(boxes.read_variance[i])),
            None if model is None else model[i].astype(np.float32),
        )
        for i in order
    )
    wider = suggested_ranges(by_quantity, quantities, allowed, findings.piled)
    return Coverage(light, fraction, (*reasons, *findings.notes), len(boxes), by_test, shifts, wider, worst)


def light_of(flagged_fraction: float | None, *, warned: bool = False, stopped: bool = False) -> Light:
    """Green up to 5 % of flagged boxes, yellow up to 20 % or where something else warns, red above."""
    if stopped:
        return "red"
    if flagged_fraction is None:
        return "yellow" if warned else "unknown"
    if flagged_fraction > RED:
        return "red"
    return "yellow" if warned or flagged_fraction > YELLOW else "green"


def suggested_ranges(
    by_quantity: dict[str, float], quantities: Floats, allowed: Allowed, piled: tuple[bool, bool]
) -> dict[str, tuple[float, float]]:
    """Ranges that hold the data, where the trained ones do not: 0.5 and 99.5 % of them, two digits."""
    found = {}
    for i, name in enumerate(QUANTITIES):
        low, high = allowed.spans[name]
        if by_quantity[name] > _WORTH:
            seen = np.quantile(_sensible(quantities[:, i], name), [0.005, 0.995])
            low, high = (
                min(low, _rounded(float(seen[0]), up=False)),
                max(high, _rounded(float(seen[1]), up=True)),
            )
        if name == "z_nm":
            width = allowed.z_nm[1] - allowed.z_nm[0]
            low, high = low - _WIDER * width * piled[0], high + _WIDER * width * piled[1]
        if (low, high) != allowed.spans[name]:
            found[name] = (max(low, 0.0) if name != "z_nm" else low, high)
    return found


def _sensible(values: Floats, name: str) -> Floats:
    """Without the photons below none that a fit of another PSF gives."""
    kept = values[values > 0] if name != "z_nm" else values
    return kept if len(kept) else np.zeros(1)


def _rounded(value: float, *, up: bool) -> float:
    """Two digits, away from the range."""
    if value == 0 or not np.isfinite(value):
        return value
    unit = 10.0 ** (np.floor(np.log10(abs(value))) - 1)
    return float((np.ceil if up else np.floor)(value / unit) * unit)


def table_warnings(findings: Findings, allowed: Allowed) -> tuple[str, ...]:
    """What is wrong with the whole table, in words."""
    texts = []
    for piled, end, side in zip(findings.piled, allowed.z_nm, ("lower", "upper"), strict=True):
        if piled:
            texts.append(
                f"Localizations crowd at the {side} end of the model's heights ({end:.0f} nm): emitters beyond it "
                f"are given heights within. {_sentence(_MEANING['z_nm'])}"
            )
    if findings.dense > _DENSE:
        texts.append(
            f"{findings.dense:.0%} of the frames hold more emitters than the model was trained for (up to "
            f"{findings.density_um2:.2g} per um^2, trained to {allowed.density_um2[1]:.2g}): emitters are missed "
            "and pulled together. Train with a higher density, or wait until fewer molecules shine."
        )
    return tuple(texts)


def _of_set(shifts: dict[str, float], fraction: float) -> tuple[str, ...]:
    """What all boxes show together although few of them do alone."""
    if fraction > YELLOW:
        return ()
    texts = [
        f"All boxes together are off by {value:+.1f} standard deviations in the test '{name}', although few are "
        "alone: a small aberration or another focus than calibrated."
        for name, value in shifts.items()
        if value > _SHIFT
    ]
    if shifts.get("deviance", 0.0) < -_SHIFT:
        texts.append(
            f"The noise is smaller than the photon numbers say ({shifts['deviance']:+.1f} standard deviations of "
            "one box): the camera's gain is too large, or the frames were averaged or smoothed."
        )
    return tuple(texts)


def _of_boxes(
    by_test: dict[str, float], by_quantity: dict[str, float], values: Floats, allowed: Allowed
) -> tuple[str, ...]:
    texts = []
    for i, name in enumerate(QUANTITIES):
        if by_quantity[name] > _WORTH:
            low, high = allowed.spans[name]
            seen = np.quantile(_sensible(values[:, i], name), [0.05, 0.95])
            texts.append(
                f"{by_quantity[name]:.0%} of the boxes have a {_NAMES[name]} outside of the training range (seen "
                f"{seen[0]:.4g} to {seen[1]:.4g} {_UNITS[name]}, trained {low:.4g} to {high:.4g}): "
                f"{_MEANING[name]}"
            )
    failed = [
        f"{by_test[name]:.0%} {text}" for name, text in _TESTS.items() if by_test.get(name, 0.0) > _WORTH
    ]
    if failed:
        texts.append(f"Of the boxes {'; '.join(failed)}: {_CAUSE}")
    return tuple(texts)


def _plain(light: Light, fraction: float) -> str:
    if light == "green":
        return (
            f"{fraction:.1%} of the boxes are flagged, as many as noise alone may: the data look like what the "
            "model was trained for."
        )
    return f"{fraction:.0%} of the boxes are flagged, by different tests. Look at the worst boxes."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
