"""The score of the SMLM challenge 2016 (Sage et al., Nature Methods 16, 387, 2019), wobble, and density sweeps."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from smlm_bridge import locs as table
from smlm_bridge.errors import InputRejected
from smlm_bridge.evaluate import (
    Matches,
    Options,
    Scores,
    evaluate,
    ignore_dim,
    inside_border,
    match_challenge,
    scores,
)

#: Field of the challenge, and the border that does not count.
FIELD_NM: Final = (6400.0, 6400.0)
BORDER_NM: Final = 450.0
#: The dimmer quarter of the emitters does not count in the second score.
DIM_QUANTILE: Final = 0.25
_WOBBLE_STEP_NM: Final = 10.0


@dataclass(frozen=True)
class ChallengeScore:
    """One of the challenge's two scores.

    Ratios lie in 0 to 1, ``f1`` is the harmonic mean of precision and recall; efficiencies are in percent,
    lateral with alpha 1/nm, axial with 0.5/nm, ``efficiency`` their mean (the lateral one without z).
    """

    min_photons: int
    tp: int
    fp: int
    fn: int
    jaccard: float
    recall: float
    precision: float
    f1: float
    rmse_lateral_nm: float | None
    rmse_axial_nm: float | None
    rmse_volume_nm: float | None
    bias_nm: tuple[float | None, float | None, float | None]
    efficiency_lateral: float | None
    efficiency_axial: float | None
    efficiency: float | None
    photon_correlation: float | None


def challenge_scores(
    locs: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    wobble: pd.DataFrame | None = None,
    field_nm: tuple[float, float] = FIELD_NM,
    border_nm: float = BORDER_NM,
) -> tuple[ChallengeScore, ChallengeScore]:
    """Score by the rules of 2016: over all emitters, and over the brightest three quarters.

    The wobble is added to the truth; what lies within ``border_nm`` of the edge is left out of both tables; in
    every frame the nearest unpaired two are paired again and again (3-D distance; lateral <= 250 nm, |dz| <=
    500 nm). The threshold of the second score is the lower quartile of the photons of the truth that is left
    (Hazen's, rounded down): pairs with an emitter at or below it are neither right nor wrong.

    Parameters
    ----------
    locs, truth
        Tables as in ``smlm_bridge.locs``; the truth needs photons.
    wobble
        Columns ``z_nm``, ``dx_nm``, ``dy_nm``: how the PSF's apparent place moves with z.
    field_nm, border_nm
        Width and height of the field, and the border.

    Raises
    ------
    InputRejected
        If a table lacks a column, or the field leaves no emitter.
    """
    locs, truth = table.validate(locs), table.validate(truth)
    if wobble is not None:
        truth = add_wobble(truth, wobble)
    locs = locs[inside_border(locs, border_nm, field_nm=field_nm)].reset_index(drop=True)
    truth = truth[inside_border(truth, border_nm, field_nm=field_nm)].reset_index(drop=True)
    if "photons" not in truth or truth.empty:
        raise InputRejected(
            f"the challenge's score needs emitters with photons more than {border_nm:g} nm inside a field of "
            f"{field_nm[0]:g} x {field_nm[1]:g} nm; the truth has none. Give --field-nm."
        )
    matches = match_challenge(locs, truth)
    quartile = int(np.floor(np.quantile(truth["photons"], DIM_QUANTILE, method="hazen")))
    every, bright = (
        _score(ignore_dim(matches, truth, min_photons=t), locs, truth, min_photons=t) for t in (0, quartile)
    )
    return every, bright


def _score(matches: Matches, locs: pd.DataFrame, truth: pd.DataFrame, *, min_photons: int) -> ChallengeScore:
    known: Scores = scores(matches)
    tp = known.matched
    lateral, axial = known.rmse_lateral_nm, known.rmse_axial_nm
    missed = 100.0 * (1.0 - known.jaccard)
    by_axis = [
        None if rmse is None else 100.0 - float(np.hypot(missed, alpha * rmse))
        for rmse, alpha in ((lateral, 1.0), (axial, 0.5))
    ]
    both = known.precision + known.recall
    return ChallengeScore(
        min_photons=min_photons,
        tp=tp,
        fp=known.n_locs - tp,
        fn=known.n_truth - tp,
        jaccard=known.jaccard,
        recall=known.recall,
        precision=known.precision,
        f1=2 * known.precision * known.recall / both if both else 0.0,
        rmse_lateral_nm=lateral,
        rmse_axial_nm=axial,
        rmse_volume_nm=None if lateral is None or axial is None else float(np.hypot(lateral, axial)),
        bias_nm=known.bias_nm,
        efficiency_lateral=by_axis[0],
        efficiency_axial=by_axis[1],
        efficiency=known.efficiency,
        photon_correlation=_correlation(matches, locs, truth),
    )


def _correlation(matches: Matches, locs: pd.DataFrame, truth: pd.DataFrame) -> float | None:
    if "photons" not in locs:
        return None
    found = locs["photons"].to_numpy()[matches.loc_index]
    true = truth["photons"].to_numpy()[matches.truth_index]
    if found.size < 2 or np.ptp(found) == 0 or np.ptp(true) == 0:
        return None
    return float(np.corrcoef(found, true)[0, 1])


def add_wobble(truth: pd.DataFrame, wobble: pd.DataFrame) -> pd.DataFrame:
    """The truth where the PSF appears: x and y plus the wobble of the nearest height.

    Raises
    ------
    InputRejected
        If the truth has no z, or the wobble lacks a column or rows.
    """
    missing = [name for name in ("z_nm", "dx_nm", "dy_nm") if name not in wobble]
    if missing or wobble.empty or "z_nm" not in truth:
        raise InputRejected(
            "a wobble is a table with z_nm, dx_nm and dy_nm, and the truth needs z_nm; "
            f"missing: {', '.join(missing) or 'rows, or z of the truth'}."
        )
    rows = wobble.sort_values("z_nm", kind="stable")
    heights = rows["z_nm"].to_numpy(np.float64)
    nearest = np.searchsorted(0.5 * (heights[1:] + heights[:-1]), truth["z_nm"].to_numpy())
    return truth.assign(
        x_nm=truth["x_nm"] + rows["dx_nm"].to_numpy()[nearest],
        y_nm=truth["y_nm"] + rows["dy_nm"].to_numpy()[nearest],
    )


def estimate_wobble(
    locs: pd.DataFrame, truth: pd.DataFrame, *, step_nm: float = _WOBBLE_STEP_NM
) -> pd.DataFrame:
    """How the apparent place moves with z: mean error of localized beads in steps of their true height.

    Parameters
    ----------
    locs, truth
        Localizations of beads at known heights, and these.
    step_nm
        Rows of the answer; heights without a bead have none.

    Returns
    -------
    ``z_nm``, ``dx_nm``, ``dy_nm``, as ``add_wobble`` takes it.

    Raises
    ------
    InputRejected
        If nothing matches, or the truth has no z.
    """
    locs, truth = table.validate(locs), table.validate(truth)
    matches = match_challenge(locs, truth)
    if "z_nm" not in truth or len(matches.loc_index) == 0:
        raise InputRejected("a wobble is estimated from localized beads of known z; nothing matched.")
    height = step_nm * np.round(truth["z_nm"].to_numpy()[matches.truth_index] / step_nm)
    pairs = pd.DataFrame(
        {"z_nm": height, "dx_nm": matches.difference_nm[:, 0], "dy_nm": matches.difference_nm[:, 1]}
    )
    return pairs.groupby("z_nm", as_index=False).mean()


@dataclass(frozen=True)
class DensityScores:
    """Scores of the frames of one range of densities."""

    density_um2: float
    frames: int
    scores: Scores


def scores_by_density(
    locs: pd.DataFrame, truth: pd.DataFrame, groups: int, *, options: Options, field_nm: tuple[float, float]
) -> list[DensityScores]:
    """Score groups of frames, from few emitters to many; every group has about as many frames.

    Parameters
    ----------
    locs, truth
        Tables as in ``smlm_bridge.locs``.
    groups
        How many; frames with equally many emitters stay together, so there may be fewer.
    options
        As for ``evaluate``.
    field_nm
        Width and height, for emitters per square micrometre.

    Raises
    ------
    InputRejected
        If ``groups`` is below 1 or the truth is empty.
    """
    locs, truth = table.validate(locs), table.validate(truth)
    if groups < 1 or truth.empty:
        raise InputRejected(f"a density sweep needs emitters, and 1 group or more; got {groups}.")
    frames, count = np.unique(truth["frame"].to_numpy(), return_counts=True)
    edges = np.unique(np.quantile(count, np.linspace(0, 1, groups + 1), method="lower"))
    group = np.clip(np.searchsorted(edges, count, side="right") - 1, 0, max(edges.size - 2, 0))
    area_um2 = field_nm[0] * field_nm[1] / 1e6
    found = []
    for number in np.unique(group):
        chosen = frames[group == number]
        part = [t[t["frame"].isin(chosen)] for t in (locs, truth)]
        density = float(count[group == number].mean()) / area_um2
        found.append(DensityScores(density, chosen.size, evaluate(part[0], part[1], options=options)[1]))
    return found
