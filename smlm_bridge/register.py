"""The transform between two channels, from beads that both see or from the emitters themselves."""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from smlm_bridge.alignment import align
from smlm_bridge.conventions import PIXEL_CENTRE
from smlm_bridge.errors import InputRejected
from smlm_bridge.locs import validate
from smlm_bridge.matching import Cloud, Pairs, fit_polynomial, settle, terms_of
from smlm_bridge.transform import Transform

FloatArray = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Beads beyond the number of coefficients: fewer say nothing of the error.
SPARE_BEADS: Final = 2
_FOLDS = 50
_ONE_BEAD_NM = 200.0  # a bead seen again in another frame
_CELL_NM = 50.0
_LEAST_SPREAD = 0.005  # of the smallest singular value of the normalised terms
_NORMAL_MAD = 1.4826


@dataclass(frozen=True)
class RegisterOptions:
    """How to register.

    Parameters
    ----------
    kind
        ``affine``, or ``polynomial`` where the channels are distorted against each other.
    degree
        Of the polynomial, 2 or 3.
    radius_nm
        Beads farther apart than this under the best affine transform are no pair.
    seed
        Of RANSAC and of the choice of held-out beads.

    Raises
    ------
    InputRejected
        If a value is out of its range.
    """

    kind: Literal["affine", "polynomial"] = "affine"
    degree: int = 2
    radius_nm: float = 500.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("affine", "polynomial"):
            raise InputRejected(f"a transform is affine or polynomial, got {self.kind!r}.")
        if self.degree not in (2, 3):
            raise InputRejected(f"the degree of a polynomial transform is 2 or 3, got {self.degree}.")
        if not 0 < self.radius_nm < math.inf:
            raise InputRejected(f"radius_nm {self.radius_nm:g} must be a length above 0 in nm.")

    @property
    def fitted_degree(self) -> int:
        """1 of an affine transform."""
        return 1 if self.kind == "affine" else self.degree


@dataclass(frozen=True, eq=False)
class Registration:
    """A transform, the pairs it comes from, and how wrong it is.

    Attributes
    ----------
    transform
        Takes positions of channel 1 to channel 2; its provenance holds the numbers below.
    first, second : (M,)
        Rows of the two tables that are pairs (the inliers).
    xy_nm : (M, 2)
        Where channel 1 has them.
    held_out_nm : (M, 2)
        Position in channel 2 minus that which a transform made without this bead predicts.
    beads
        Distinct beads among the pairs; without beads, the pairs.
    target_registration_error_nm
        Root mean square of the length of ``held_out_nm`` over beads. It holds the localization errors of the
        held-out bead in both channels, so it is an upper limit for the transform alone.
    target_registration_error_sd_nm
        Standard deviation of that estimate.
    gate_nm
        Pairs farther apart than this were left out.
    photon_ratio
        Median of photons in channel 2 over channel 1; None without photons.
    photon_ratio_interval
        The median minus and plus 1.4826 times the median absolute deviation: two thirds of the pairs.
    """

    transform: Transform
    first: Indices
    second: Indices
    xy_nm: FloatArray
    held_out_nm: FloatArray
    beads: int
    target_registration_error_nm: float
    target_registration_error_sd_nm: float
    gate_nm: float
    photon_ratio: float | None
    photon_ratio_interval: tuple[float, float] | None


def register(
    first: pd.DataFrame,
    second: pd.DataFrame,
    options: RegisterOptions = RegisterOptions(),
    *,
    initial: Transform | None = None,
) -> Registration:
    """The transform between two channels from localizations of the same beads.

    Shift, rotation and mirror are searched by cross-correlation of the two clouds of points (``alignment``), so
    the channels may be mirrored and lie anywhere. Beads of one frame are paired if each is the other's nearest;
    an affine transform is found by RANSAC, the wanted one fitted to its inliers and refined with its own pairs.

    Parameters
    ----------
    first, second
        Tables as in ``smlm_bridge.locs``. Beads of one frame are compared, so several fields of beads, or one
        field scanned, go into one table with a frame for each.
    options
        See ``RegisterOptions``.
    initial
        A transform that is right up to a shift and 2 or 3 degrees; None searches rotations and mirrors too.

    Returns
    -------
    Registration
        The error is that of beads held out, each with all its frames: every one of up to 50, else in 50 parts.

    Raises
    ------
    InputRejected
        If there are too few beads or they lie on a line, no frame has both channels, or no transform explains
        more pairs than chance.
    """
    clouds, tables = _clouds(first, second)
    beads = [_beads(cloud) for cloud in clouds]
    return _registered((beads[0], beads[1]), tables, options, initial, "beads")


def register_self(
    first: pd.DataFrame,
    second: pd.DataFrame,
    options: RegisterOptions = RegisterOptions(),
    *,
    initial: Transform | None = None,
) -> Registration:
    """As ``register``, from emitters that both channels see in the same frames.

    For when a transform is off, or there are no beads. Few of the emitters need to be in both channels. Every
    pair counts as a measurement of its own, so the stated error is that of a held-out pair of emitters.
    """
    clouds, tables = _clouds(first, second)
    return _registered(clouds, tables, options, initial, "emitters of the data")


def warp(
    image: NDArray[Any],
    transform: Transform,
    *,
    pixel_nm: float,
    shape: tuple[int, int] | None = None,
    outside: float = math.nan,
) -> NDArray[np.floating]:
    """An image of channel 2 as channel 1 would show it, by cubic splines.

    Parameters
    ----------
    image : (..., H, W)
        Of channel 2.
    transform
        From channel 1 to channel 2.
    pixel_nm
        Pixel of both channels.
    shape
        Rows and columns of channel 1; None takes those of the image.
    outside
        Value of pixels that channel 2 does not show.

    Returns
    -------
    (..., H, W)
        float32, or float64 for such an image. Values are interpolated, not scaled with the change of area.

    Raises
    ------
    InputRejected
        If the image has fewer than two axes or a value that is not finite, or ``pixel_nm`` is no length.
    """
    if image.ndim < 2 or not np.isfinite(image).all():
        raise InputRejected(f"an image is (rows, columns) of finite values, got the shape {image.shape}.")
    if not 0 < pixel_nm < math.inf:
        raise InputRejected(f"pixel_nm {pixel_nm:g} must be above 0 nm.")
    rows, columns = shape or (image.shape[-2], image.shape[-1])
    row, column = np.indices((rows, columns), dtype=np.float64).reshape(2, -1)
    places = (np.stack([column, row], axis=1) + PIXEL_CENTRE) * pixel_nm
    there = transform.apply(places).T[::-1] / pixel_nm - PIXEL_CENTRE
    planes = image.reshape(-1, *image.shape[-2:]).astype(np.result_type(image.dtype, np.float32), copy=False)
    warped = [map_coordinates(plane, there, order=3, mode="constant", cval=outside) for plane in planes]
    return np.stack(warped).reshape(*image.shape[:-2], rows, columns)


def _clouds(
    first: pd.DataFrame, second: pd.DataFrame
) -> tuple[tuple[Cloud, Cloud], tuple[pd.DataFrame, pd.DataFrame]]:
    """The channels with common frame numbers without gaps, each localization a bead of its own."""
    tables = validate(first), validate(second)
    for number, table in enumerate(tables, start=1):
        if len(table) < terms_of(1) + SPARE_BEADS:
            raise InputRejected(
                f"channel {number} has {len(table)} localizations; an affine transform with an error needs "
                f"{terms_of(1) + SPARE_BEADS} or more that both channels see."
            )
    frames = [table["frame"].to_numpy(np.int64) for table in tables]
    if not np.isin(frames[0], frames[1]).any():
        raise InputRejected(
            f"the channels share no frame: {frames[0].min() + 1} to {frames[0].max() + 1} and "
            f"{frames[1].min() + 1} to {frames[1].max() + 1} (from 1). Beads are compared within a frame; give "
            "tables of movies recorded together."
        )
    numbers = np.unique(np.concatenate(frames), return_inverse=True)[1]
    split = np.split(numbers.astype(np.int64), [len(frames[0])])
    made = [
        Cloud(table[["x_nm", "y_nm"]].to_numpy(np.float64), frame, np.arange(len(table)))
        for table, frame in zip(tables, split, strict=True)
    ]
    return (made[0], made[1]), tables


def _beads(cloud: Cloud) -> Cloud:
    """The cloud with one number for all that shows one bead: what lies at one place in several frames."""
    if len(np.unique(cloud.frame)) == 1:
        return cloud
    cells, of_cell = np.unique(np.round(cloud.xy_nm / _CELL_NM), axis=0, return_inverse=True)
    near = cKDTree(cells).query_pairs(_ONE_BEAD_NM / _CELL_NM, output_type="ndarray")
    links = coo_array((np.ones(len(near), bool), (near[:, 0], near[:, 1])), shape=(len(cells), len(cells)))
    labels = connected_components(links, directed=False)[1]
    return Cloud(cloud.xy_nm, cloud.frame, labels[of_cell.reshape(-1)].astype(np.int64))


def _registered(
    clouds: tuple[Cloud, Cloud],
    tables: tuple[pd.DataFrame, pd.DataFrame],
    options: RegisterOptions,
    initial: Transform | None,
    source: str,
) -> Registration:
    rng = np.random.default_rng(options.seed)
    pairs = _paired(clouds, options, initial, rng)
    xy, to = clouds[0].xy_nm[pairs.first], clouds[1].xy_nm[pairs.second]
    bead = np.unique(clouds[0].bead[pairs.first], return_inverse=True)[1]
    _check_pairs(pairs, xy, bead, options)
    held_out = _held_out(xy, to, bead, options.fitted_degree, rng)
    error, spread = _error(held_out, bead)
    ratio, interval = _photon_ratio(tables, pairs)
    provenance = {
        "registered_from": source,
        "inliers": len(pairs.first),
        "beads": int(bead.max()) + 1,
        "target_registration_error_nm": error,
        "target_registration_error_sd_nm": spread,
        "gate_nm": pairs.gate_nm,
        "photon_ratio": ratio,
        "photon_ratio_interval": interval,
    }
    centre = float(pairs.map.centre_nm[0]), float(pairs.map.centre_nm[1])
    transform = Transform(options.kind, pairs.map.coefficients, centre, pairs.map.scale_nm, provenance)
    return Registration(
        transform,
        pairs.first,
        pairs.second,
        xy,
        held_out,
        int(bead.max()) + 1,
        error,
        spread,
        pairs.gate_nm,
        ratio,
        interval,
    )


def _paired(
    clouds: tuple[Cloud, Cloud],
    options: RegisterOptions,
    initial: Transform | None,
    rng: np.random.Generator,
) -> Pairs:
    """The inliers of the wanted kind of transform."""
    first, second = clouds
    for number, cloud in enumerate(clouds, start=1):
        if _spread(cloud.xy_nm, 1) < _LEAST_SPREAD:
            raise InputRejected(
                f"the beads of channel {number} lie on one line, which leaves the transform across it open. "
                "Record beads spread over the field."
            )
    predicted = first.xy_nm if initial is None else initial.apply(first.xy_nm)
    found, shared = align(
        first, second, predicted, turned=initial is None, radius_nm=options.radius_nm, rng=rng
    )
    if found is None:
        counts = " and ".join(str(len(np.unique(cloud.bead))) for cloud in clouds)
        raise InputRejected(
            f"no transform pairs more beads than chance would: the best pairs {shared} of {counts}. Do both "
            "tables show the same beads in the same frames, both in nm? More beads, or --initial T.json, may help."
        )
    settled = settle(
        first, second, found.map(first.xy_nm), degree=options.fitted_degree, gate_nm=options.radius_nm
    )
    if settled is None:
        raise InputRejected(_too_few(shared, options))
    return settled


def _check_pairs(pairs: Pairs, xy: FloatArray, bead: Indices, options: RegisterOptions) -> None:
    count = int(bead.max()) + 1
    if count < terms_of(options.fitted_degree) + SPARE_BEADS:
        raise InputRejected(_too_few(count, options))
    if _spread(xy, options.fitted_degree) < _LEAST_SPREAD:
        raise InputRejected(
            f"the {count} beads seen in both channels lie on a line or curve, which leaves the {options.kind} "
            "transform open. Record beads spread over the field, or take --transform affine."
        )


def _too_few(count: int, options: RegisterOptions) -> str:
    wanted = terms_of(options.fitted_degree) + SPARE_BEADS
    advice = "" if options.kind == "affine" else " or take --transform affine (5 beads)"
    return (
        f"{count} beads are seen in both channels; a transform of degree {options.fitted_degree} with an error "
        f"needs {wanted} or more. Record more beads{advice}."
    )


def _spread(xy: FloatArray, degree: int) -> float:
    """How well points determine a polynomial: the least singular value of its terms, 0 for points on a line."""
    terms = fit_polynomial(xy, xy, degree).terms(xy)
    return float(np.linalg.svd(terms, compute_uv=False)[-1]) / math.sqrt(len(xy))


def _held_out(
    xy: FloatArray, to: FloatArray, bead: Indices, degree: int, rng: np.random.Generator
) -> FloatArray:
    """Errors (M, 2) of the predictions without the bead: each left out alone up to 50 beads, else in 50 parts."""
    fold = (rng.permutation(int(bead.max()) + 1) % _FOLDS)[bead]
    errors = np.empty_like(to)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        errors[out] = to[out] - fit_polynomial(xy[~out], to[~out], degree)(xy[out])
    return errors


def _error(held_out: FloatArray, bead: Indices) -> tuple[float, float]:
    """Root mean square over beads, and the standard deviation of it."""
    squares = np.bincount(bead, (held_out**2).sum(axis=1)) / np.bincount(bead)
    error = math.sqrt(squares.mean())
    return error, float(squares.std(ddof=1)) / math.sqrt(squares.size) / (2 * error) if error > 0 else 0.0


def _photon_ratio(
    tables: tuple[pd.DataFrame, pd.DataFrame], pairs: Pairs
) -> tuple[float | None, tuple[float, float] | None]:
    """Median of photons 2 / photons 1 over the pairs, and the interval of its scaled MAD."""
    if any("photons" not in table for table in tables):
        return None, None
    one, two = (
        table["photons"].to_numpy()[rows]
        for table, rows in zip(tables, (pairs.first, pairs.second), strict=True)
    )
    seen = (one > 0) & (two > 0) & np.isfinite(one) & np.isfinite(two)
    if not seen.any():
        return None, None
    ratios = two[seen] / one[seen]
    median = float(np.median(ratios))
    width = _NORMAL_MAD * float(np.median(np.abs(ratios - median)))
    return median, (median - width, median + width)
