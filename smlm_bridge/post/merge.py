"""Blinks of one molecule to one row: what ``link`` says belongs together is merged."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import sort, validate
from smlm_bridge.post.link import DISTANCE_NM, GAP_FRAMES, Z_WEIGHT, link

Mode = Literal["weighted", "thunderstorm"]

_UNKNOWN_NM: Final = 9999.0  # what tables hold for "no usable uncertainty"; so do 0 and NaN
_AXES: Final = {"x_nm": "uncertainty_x_nm", "y_nm": "uncertainty_y_nm", "z_nm": "uncertainty_z_nm"}
_MEANS: Final = ("psf_sigma_nm", "psf_sigma1_nm", "psf_sigma2_nm", "background")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]


def merge(
    locs: pd.DataFrame,
    distance_nm: float = DISTANCE_NM,
    *,
    gap_frames: int = GAP_FRAMES,
    z_weight: float = Z_WEIGHT,
    mode: Mode = "weighted",
    pixel_nm: float | None = None,
) -> pd.DataFrame:
    """Merge the detections of one molecule in several frames.

    In both modes ``frame`` is the first one, ``photons`` are summed, background and widths of the PSF are
    means, ``detections`` counts (those of a table that was merged before are summed), ``chi2`` of what was
    merged is NaN, and every other column keeps the first detection's value. What was linked to nothing stays
    as it is.

    ``"weighted"``: a position is the mean with weights 1/sigma^2 of its axis (``uncertainty_x_nm``, else
    ``uncertainty_xy_nm``; equal weights where no detection has one), the uncertainties become
    1/sqrt(sum 1/sigma^2), those of photons and the background's deviations add in quadrature, and
    ``probability`` is the largest. A molecule is linked to at most one detection a frame.

    ``"thunderstorm"``: as ThunderSTORM does: unweighted means of positions, ``background_std`` summed, and
    several detections of a frame may be linked to one molecule, in the order of the table (``link``).
    Uncertainties keep the first detection's
    value, as ThunderSTORM leaves them in a table without its protocol; with ``pixel_nm`` and a
    ``psf_sigma_nm``, ``uncertainty_xy_nm`` is computed anew from the merged values.

    Parameters
    ----------
    locs
        A table as in ``smlm_bridge.locs``, frames in any order.
    distance_nm
        Detections closer than this to a molecule's last detection are linked to it.
    gap_frames
        Longest dark time between two detections of a molecule, in frames.
    z_weight
        Factor of differences in z within the distance; unused for a table without z.
    mode
        See above.
    pixel_nm
        Camera pixel, for the uncertainty of the mode ``"thunderstorm"``.

    Returns
    -------
    A new table in the order frame, x, y.

    Raises
    ------
    InputRejected
        If an argument is out of its range or the table is not valid.
    """
    if mode not in get_args(Mode):
        raise InputRejected(f"mode '{mode}' is not one of {', '.join(get_args(Mode))}.")
    if pixel_nm is not None and not (math.isfinite(pixel_nm) and pixel_nm > 0):
        raise InputRejected(f"pixel_nm {pixel_nm} must be a length above 0 in nm, for example 100.")
    table = validate(locs)
    # ThunderSTORM links the rows of a frame, and keeps the first one, in the table's order.
    as_given = mode == "thunderstorm"
    table = table.sort_values("frame", kind="stable", ignore_index=True) if as_given else sort(table)
    molecule = link(
        table, distance_nm, gap_frames=gap_frames, z_weight=z_weight, one_a_frame=mode == "weighted"
    )
    order = np.argsort(molecule, kind="stable")
    return sort(_merged(table.iloc[order], molecule[order], mode, pixel_nm))


@dataclass(frozen=True)
class _Molecules:
    """Rows in the order of molecules: where each begins, and how many it has."""

    starts: Integers
    count: Integers

    def first(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self.starts]

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.add.reduceat(values, self.starts))

    def mean(self, values: NDArray[Any], weights: Floats | None = None) -> Floats:
        weights = np.ones(len(values)) if weights is None else weights
        # About the first detection: exact where all agree.
        base = self.first(values)
        off = self.total(weights * (values - np.repeat(base, self.count))) / self.total(weights)
        return np.asarray(base + off, dtype=np.float64)


def _merged(rows: pd.DataFrame, molecule: Integers, mode: Mode, pixel_nm: float | None) -> pd.DataFrame:
    """One row a molecule from the rows in the order of molecule, then frame."""
    starts = np.flatnonzero(np.diff(molecule, prepend=-1))
    first = rows.iloc[starts].reset_index(drop=True)
    if len(first) == 0:
        return first.assign(detections=np.zeros(0, np.int64))
    groups = _Molecules(starts, np.asarray(np.diff(starts, append=len(molecule))))
    given = {str(name): rows[name].to_numpy() for name in rows.columns}
    new = _in_both_modes(given, groups)
    new |= _weighted(given, groups) if mode == "weighted" else _plain(given, groups, pixel_nm)
    several = groups.count > 1
    for name, values in new.items():
        untouched = first[name].to_numpy() if name in first and name != "detections" else values
        first[name] = np.where(several, values, untouched)
    return first


def _in_both_modes(given: Columns, groups: _Molecules) -> Columns:
    """What a molecule has of its rows in either mode."""
    new: Columns = {name: groups.mean(given[name]) for name in _MEANS if name in given}
    detections = given.get("detections", np.ones(int(groups.count.sum()), np.int64))
    new["detections"] = groups.total(np.maximum(detections, 1))
    if "photons" in given:
        new["photons"] = groups.total(given["photons"])
    if "chi2" in given:
        new["chi2"] = np.full(len(groups.starts), np.nan)  # of one fit; the merged row is of none
    if "id" in given:
        new["id"] = np.minimum.reduceat(given["id"], groups.starts)
    return new


def _plain(given: Columns, groups: _Molecules, pixel_nm: float | None) -> Columns:
    """What ThunderSTORM does besides."""
    new: Columns = {name: groups.mean(given[name]) for name in _AXES if name in given}
    if "background_std" in given:
        new["background_std"] = groups.total(given["background_std"])
    if pixel_nm is not None and {"psf_sigma_nm", "photons", "background_std"} <= given.keys():
        new["uncertainty_xy_nm"] = _thunderstorm_uncertainty_nm(
            groups.total(given["photons"]),
            groups.mean(given["psf_sigma_nm"]),
            new["background_std"],
            pixel_nm=pixel_nm,
        )
    return new


def _weighted(given: Columns, groups: _Molecules) -> Columns:
    """Positions weighted by 1/sigma^2, and recombined uncertainties."""
    new: Columns = {}
    for axis, own in _AXES.items():
        source = own if own in given or axis == "z_nm" else "uncertainty_xy_nm"
        if axis in given and source in given:
            share = _information(given[source])
            known = np.repeat(groups.total(share) > 0, groups.count)
            new[axis] = groups.mean(given[axis], np.where(known, share, 1.0))
        elif axis in given:
            new[axis] = groups.mean(given[axis])
    for name in (*_AXES.values(), "uncertainty_xy_nm"):
        if name in given:
            summed = groups.total(_information(given[name]))
            safe = np.where(summed > 0, summed, 1.0)
            new[name] = np.where(summed > 0, safe**-0.5, groups.first(given[name]))
    if {"uncertainty_x_nm", "uncertainty_y_nm", "uncertainty_xy_nm"} <= given.keys():
        new["uncertainty_xy_nm"] = np.sqrt((new["uncertainty_x_nm"] ** 2 + new["uncertainty_y_nm"] ** 2) / 2)
    for name in ("uncertainty_photons", "background_std"):
        if name in given:
            new[name] = np.sqrt(groups.total(given[name] ** 2.0))
    if "probability" in given:
        new["probability"] = np.maximum.reduceat(given["probability"], groups.starts)
    return new


def _information(sigma: NDArray[Any]) -> Floats:
    """1/sigma^2, and 0 where sigma is none."""
    usable = np.isfinite(sigma) & (sigma > 0) & (sigma < _UNKNOWN_NM)
    return np.where(usable, np.where(usable, sigma, 1.0) ** -2.0, 0.0)


def _thunderstorm_uncertainty_nm(
    photons: Floats, sigma_nm: Floats, noise: Floats, *, pixel_nm: float
) -> Floats:
    """ThunderSTORM's lateral uncertainty of a maximum-likelihood fit, no EM gain (Rieger and Stallinga 2014).

    9999 where there are no photons.
    """
    width2 = sigma_nm**2 + pixel_nm**2 / 12
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = 2 * np.pi * noise**2 * width2 / (photons * pixel_nm**2)
        sigma = np.sqrt(width2 / photons * (1 + 4 * tau + np.sqrt(2 * tau / (1 + 4 * tau))))
    return np.where(np.isfinite(sigma), sigma, _UNKNOWN_NM)
