"""How good is a table: precision and resolution from the data alone, light, density, and errors over sigma."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import POSITION, validate
from smlm_bridge.post.frc import BLOCKS, REPEATS, Frc, frc
from smlm_bridge.post.merge import merge
from smlm_bridge.post.nena import LocalPrecision, Nena, claimed_sigma_nm, local_precision, nena

_LINK_SIGMA: Final = 5.0  # two detections of a molecule differ by sqrt(2) sigma an axis: 99.8 % are nearer

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class QualityOptions:
    """How ``assess`` works.

    Parameters
    ----------
    link_distance_nm
        Blinks closer than this are merged before the Fourier ring correlation; None takes five times NeNA's
        precision, else of the median uncertainty; 0 merges nothing.
    gap_frames
        Longest dark time within a blink.
    blocks, repeats, frc_pixel_nm
        As ``post.frc.frc`` takes them.
    """

    link_distance_nm: float | None = None
    gap_frames: int = 1
    blocks: int = BLOCKS
    repeats: int = REPEATS
    frc_pixel_nm: float | None = None

    def __post_init__(self) -> None:
        if self.link_distance_nm is not None and not 0 <= self.link_distance_nm < np.inf:
            raise InputRejected(
                f"link_distance_nm {self.link_distance_nm} must be a length in nm, or 0 to merge nothing."
            )


@dataclass(frozen=True)
class Quality:
    """What ``assess`` finds; a part that the table is too small for is None.

    Attributes
    ----------
    localizations, molecules
        Rows of the table, and of the table with blinks merged that ``frc`` saw.
    first_frame, frames
        From the first row's frame to the last row's.
    area_um2
        Of the rectangle around all localizations.
    link_distance_nm
        With which blinks were merged; 0 for none.
    """

    localizations: int
    molecules: int
    first_frame: int
    frames: int
    area_um2: float
    link_distance_nm: float
    nena: Nena | None
    local: LocalPrecision | None
    frc: Frc

    @property
    def density_per_um2(self) -> float | None:
        """Localizations per µm² and frame, mean over the frames."""
        volume = self.area_um2 * self.frames
        return self.localizations / volume if volume else None


def assess(
    locs: pd.DataFrame,
    options: QualityOptions = QualityOptions(),
    *,
    rng: np.random.Generator,
    on_step: Callable[[int, int], None] | None = None,
) -> Quality:
    """Precision by NeNA, by axis and place, and resolution by Fourier ring correlation of merged blinks.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, drift corrected, not merged.
    options
        See ``QualityOptions``.
    rng
        Source of randomness: blocks of time are dealt to halves.
    on_step
        Called with (steps done, steps in all) of the correlation.

    Raises
    ------
    InputRejected
        If the table is not valid.
    """
    table = validate(locs)
    precision = nena(table)
    local = None if precision is None else local_precision(table, precision.sigma_nm)
    distance = options.link_distance_nm
    if distance is None:
        distance = _LINK_SIGMA * _sigma_nm(table, precision)
    molecules = (
        merge(table, distance, gap_frames=options.gap_frames) if distance > 0 and len(table) else table
    )
    resolution = frc(
        molecules,
        blocks=options.blocks,
        repeats=options.repeats,
        pixel_nm=options.frc_pixel_nm,
        sigma_nm=None if precision is None else precision.sigma_nm,
        rng=rng,
        on_step=on_step,
    )
    frame = table["frame"].to_numpy()
    first, last = (int(frame.min()), int(frame.max())) if len(table) else (0, -1)
    sides = [np.ptp(table[name].to_numpy()) / 1000 for name in ("x_nm", "y_nm")] if len(table) else [0.0, 0.0]
    return Quality(
        localizations=len(table),
        molecules=len(molecules),
        first_frame=first,
        frames=last - first + 1,
        area_um2=float(sides[0] * sides[1]),
        link_distance_nm=float(distance),
        nena=precision,
        local=local,
        frc=resolution,
    )


def _sigma_nm(table: pd.DataFrame, precision: Nena | None) -> float:
    """Precision by NeNA, else by the table's own account, else 0."""
    if precision is not None:
        return precision.sigma_nm
    claimed = claimed_sigma_nm(table, 0)
    known = claimed is not None and np.isfinite(claimed).any()
    return float(np.nanmedian(claimed)) if claimed is not None and known else 0.0


def z_scores(locs: pd.DataFrame, rows: NDArray[np.intp], difference_nm: Floats) -> Floats:
    """Errors against a known truth over the uncertainties that the table claims.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``.
    rows
        (M,) rows with a partner in the truth, for example ``evaluate.Matches.loc_index``.
    difference_nm
        (M, 3) localization minus truth.

    Returns
    -------
    (M, 3) of x, y, z; NaN where the table has no usable uncertainty. Where the uncertainties are right, they are
    normally distributed with mean 0 and standard deviation 1.
    """
    table = validate(locs)
    scores = np.full((len(rows), len(POSITION)), np.nan)
    for axis in range(len(POSITION)):
        sigma = claimed_sigma_nm(table, axis)
        if sigma is not None:
            scores[:, axis] = difference_nm[:, axis] / sigma[rows]
    return scores
