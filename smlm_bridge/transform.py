"""The geometric transform between two channels: where an emitter of channel 1 appears in channel 2."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smlm_bridge.errors import InputRejected

FloatArray = NDArray[np.float64]

FORMAT: Final = "smlm_bridge transform"
VERSION: Final = 1
MAX_DEGREE: Final = 5
_FARTHEST_NM = 1e8  # a decimetre: no camera is wider
_STRETCH = (0.25, 4.0)  # change of an area: channels of one microscope have about one magnification
_STEPS = 50
_TOLERANCE_NM = 1e-6
_STRIP_PX = 65_536  # resampled at once: bounds the memory
_STILL_PX = 1e-3
_GRID = 9


@dataclass(frozen=True)
class Transform:
    """Maps positions of channel 1 to positions of channel 2, both in nm from the corner of their own frame.

    With u = (xy - centre_nm) / scale_nm, each coordinate is a polynomial in u_x and u_y.

    Parameters
    ----------
    kind
        ``"affine"`` (degree 1) or ``"polynomial"`` (degree 2 to 5).
    coefficients : (T, 2) array
        Of x and y, in nm, for the terms 1, u_x, u_y, u_x^2, u_x u_y, u_y^2, ... up to the degree.
    centre_nm, scale_nm
        Origin and unit of u.
    provenance
        Where it comes from and how good it is. Anything JSON can hold.

    Raises
    ------
    InputRejected
        If a value is not finite, the number of coefficients fits no degree, or areas change more than fourfold.
    """

    kind: Literal["affine", "polynomial"]
    coefficients: FloatArray
    centre_nm: tuple[float, float] = (0.0, 0.0)
    scale_nm: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coefficients = np.array(self.coefficients, dtype=np.float64)
        coefficients.setflags(write=False)
        object.__setattr__(self, "coefficients", coefficients)
        x, y = (float(value) for value in self.centre_nm)
        object.__setattr__(self, "centre_nm", (x, y))
        object.__setattr__(self, "scale_nm", float(self.scale_nm))
        if coefficients.ndim != 2 or coefficients.shape[1] != 2:
            raise InputRejected(
                f"transform coefficients are (terms, 2) for x and y, got {coefficients.shape}."
            )
        allowed = {"affine": range(1, 2), "polynomial": range(2, MAX_DEGREE + 1)}.get(self.kind)
        if allowed is None:
            raise InputRejected(f"a transform is affine or polynomial, got {self.kind!r}.")
        if self.degree not in allowed:
            counts = ", ".join(str(_terms(degree)) for degree in allowed)
            raise InputRejected(
                f"a transform of kind {self.kind} has {counts} coefficients a coordinate, got {len(coefficients)}."
            )
        self._check_values()

    def _check_values(self) -> None:
        if not (np.isfinite(self.coefficients).all() and all(map(math.isfinite, self.centre_nm))):
            raise InputRejected("the transform has values that are not finite.")
        if max(np.abs(self.coefficients).max(), *map(abs, self.centre_nm)) > _FARTHEST_NM:
            raise InputRejected("the transform moves further than 100 mm; its lengths are in nm.")
        if not (math.isfinite(self.scale_nm) and 0 < self.scale_nm <= _FARTHEST_NM):
            raise InputRejected(f"the transform's scale_nm {self.scale_nm} must be a length above 0.")
        _, slopes = self._map(np.array([self.centre_nm]))
        area = abs(float(np.linalg.det(slopes[0])))
        if not _STRETCH[0] <= area <= _STRETCH[1]:
            raise InputRejected(
                f"the transform changes areas {area:.3g}-fold (allowed {_STRETCH[0]:g} to {_STRETCH[1]:g}). Are "
                "both channels in nm in the sample, not in pixels?"
            )

    @classmethod
    def affine(
        cls, matrix: ArrayLike, shift_nm: ArrayLike, *, provenance: Mapping[str, Any] | None = None
    ) -> "Transform":
        """xy2 = matrix @ xy1 + shift_nm, with a (2, 2) matrix for x before y."""
        terms = np.vstack(
            [np.asarray(shift_nm, dtype=float).reshape(1, 2), np.asarray(matrix, dtype=float).T]
        )
        return cls("affine", terms, provenance=dict(provenance or {}))

    @classmethod
    def identity(cls) -> "Transform":
        """Channels that lie on each other."""
        return cls.affine(np.eye(2), (0.0, 0.0))

    @property
    def is_identity(self) -> bool:
        """Whether every position stays the very same, as ``identity`` leaves it; polynomials never say so."""
        here = np.array([[0.0, 0.0], [1e5, 0.0], [0.0, 1e5]])
        return self.degree == 1 and bool(np.abs(self.apply(here) - here).max() < _TOLERANCE_NM)

    @property
    def degree(self) -> int:
        """Of the polynomials; 0 where the number of coefficients fits none."""
        counts = {_terms(degree): degree for degree in range(1, MAX_DEGREE + 1)}
        return counts.get(len(self.coefficients), 0)

    def between(self, corner_nm: tuple[float, float]) -> "Transform":
        """The same for positions from ``corner_nm`` (x, y) in either channel: for a region cut from both."""
        corner = np.asarray(corner_nm, dtype=np.float64)
        coefficients = self.coefficients.copy()
        coefficients[0] -= corner
        x, y = (float(value) for value in np.asarray(self.centre_nm) - corner)
        return replace(self, coefficients=coefficients, centre_nm=(x, y))

    def moved(self, shift_nm: tuple[float, float]) -> "Transform":
        """The same, and then a shift (x, y) in channel 2."""
        coefficients = self.coefficients.copy()
        coefficients[0] += np.asarray(shift_nm, dtype=np.float64)
        return replace(self, coefficients=coefficients)

    def slopes(self, xy_nm: ArrayLike) -> FloatArray:
        """(N, 2, 2) derivatives at positions (N, 2) of channel 1: rows by coordinate, columns by x and y."""
        return self._map(_positions(xy_nm))[1]

    def apply(self, xy_nm: ArrayLike) -> FloatArray:
        """Positions (N, 2) of channel 1, x before y, in channel 2."""
        return self._map(_positions(xy_nm))[0]

    def inverse(self, xy_nm: ArrayLike) -> FloatArray:
        """Positions (N, 2) of channel 2 in channel 1, by Newton's method.

        Raises
        ------
        InputRejected
            If a position has no counterpart: it lies where the polynomial folds.
        """
        wanted = _positions(xy_nm)
        # The linear part at the centre is the start: exact for affine transforms.
        value, slopes = self._map(np.array([self.centre_nm]))
        found = np.asarray(self.centre_nm) + np.linalg.solve(slopes[0], (wanted - value).T).T
        for _ in range(_STEPS):
            value, slopes = self._map(found)
            wrong = wanted - value
            if not wrong.size or np.abs(wrong).max() < _TOLERANCE_NM:
                return found
            try:
                found = found + np.linalg.solve(slopes, wrong[..., None])[..., 0]
            except np.linalg.LinAlgError:
                break
            if not np.isfinite(found).all():
                break
        bad = wanted[np.argmax(np.abs(wrong).max(axis=1))]
        raise InputRejected(
            f"the transform cannot be inverted at ({bad[0]:.0f}, {bad[1]:.0f}) nm: too far outside the beads it "
            "was made from. Register with --transform affine, or over the whole field."
        )

    def _map(self, xy_nm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mapped positions (N, 2) and derivatives (N, 2, 2), rows by coordinate, columns by xy."""
        u = (xy_nm - np.asarray(self.centre_nm)) / self.scale_nm
        powers = u[:, None, :] ** np.arange(self.degree + 1)[None, :, None]
        slopes = np.zeros_like(powers)
        slopes[:, 1:] = np.arange(1, self.degree + 1)[None, :, None] * powers[:, :-1] / self.scale_nm
        i, j = _exponents(self.degree)
        values = powers[:, i, 0] * powers[:, j, 1]
        by_x, by_y = slopes[:, i, 0] * powers[:, j, 1], powers[:, i, 0] * slopes[:, j, 1]
        derivatives = np.stack([by_x @ self.coefficients, by_y @ self.coefficients], axis=2)
        return values @ self.coefficients, derivatives

    def to_json(self) -> str:
        """The transform as text; ``docs/reference/calibration-file.md`` describes the keys."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "unit": "nm",
            "maps": "channel 1 to channel 2",
            "centre_nm": list(self.centre_nm),
            "scale_nm": self.scale_nm,
            "coefficients": self.coefficients.tolist(),
            "provenance": dict(self.provenance),
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, name: str = "transform") -> "Transform":
        """Read what ``to_json`` wrote.

        Raises
        ------
        InputRejected
            If it is no transform, of another version, or a key is missing, unknown, of the wrong kind or absurd.
        """
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputRejected(f"{name} is not JSON, so not a transform: {error}.") from error
        try:
            return cls(**_checked(content))
        except InputRejected as error:
            raise InputRejected(f"{name}: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputRejected(f"{name} has a value of the wrong kind: {error}.") from error


_KEYS: Final = ("kind", "centre_nm", "scale_nm", "coefficients", "provenance")
_FIXED: Final = {"format": FORMAT, "version": VERSION, "unit": "nm", "maps": "channel 1 to channel 2"}


@dataclass(frozen=True, eq=False)
class Resampling:
    """Brings images of channel 2 onto the pixels of channel 1, by cubic convolution (Keys 1981).

    Beyond the edge of channel 2 its outermost pixels go on, as if there was nothing but background.

    Parameters
    ----------
    transform
        Takes positions in an image of channel 1 to positions in the image of channel 2, nm from the corners.
    pixel_nm
        Of channel 1 and of channel 2.
    shape, source
        Rows and columns of the images of channel 1, and of those of channel 2.
    """

    transform: Transform
    pixel_nm: tuple[float, float]
    shape: tuple[int, int]
    source: tuple[int, int]

    @property
    def moves_nothing(self) -> bool:
        """Whether every pixel stays where it is, to a thousandth."""
        if self.shape != self.source:
            return False
        axes = [np.linspace(0.0, length, _GRID) for length in self.shape]
        row, column = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        here = np.stack([column, row], axis=1)
        there = self.transform.apply(here * self.pixel_nm[0]) / self.pixel_nm[1]
        return bool(np.abs(there - here).max() < _STILL_PX)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (..., h, w) of channel 2 as (..., H, W) on the pixels of channel 1."""
        if self.moves_nothing:
            return images
        flat = images.reshape(*images.shape[:-2], -1)
        strips = [
            sum(flat[..., i] * w for i, w in zip(index, weight, strict=True))
            for index, weight in self.strips()
        ]
        return np.concatenate(strips, axis=-1).reshape(*images.shape[:-2], *self.shape)

    def strips(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Strip by strip of rows: (16, n) pixels of channel 2, row by row, and their weights in the n pixels."""
        height, width = self.shape
        rows = max(1, _STRIP_PX // width)
        for first in range(0, height, rows):
            row, column = np.indices((min(rows, height - first), width), dtype=np.float64).reshape(2, -1)
            here = (np.stack([column, row + first], axis=1) + 0.5) * self.pixel_nm[0]
            there = self.transform.apply(here) / self.pixel_nm[1] - 0.5
            (column_of, by_x), (row_of, by_y) = (
                _cubic(there[:, axis], self.source[1 - axis]) for axis in (0, 1)
            )
            index = row_of[:, None] * self.source[1] + column_of
            weight = by_y[:, None] * by_x
            yield index.reshape(16, -1), weight.reshape(16, -1).astype(np.float32)


def _cubic(position: FloatArray, length: int) -> tuple[NDArray[np.int64], FloatArray]:
    """(4, N) samples around positions (N,) within 0 to ``length`` - 1, and their weights (Keys 1981, eq. 15)."""
    position = np.clip(position, 0.0, length - 1.0)
    first = np.floor(position + _STILL_PX * _STILL_PX)  # of what rounding leaves below a whole number
    t = np.maximum(position - first, 0.0)
    weights = (
        ((2.0 - t) * t - 1.0) * t / 2,
        ((3.0 * t - 5.0) * t * t + 2.0) / 2,
        ((4.0 - 3.0 * t) * t + 1.0) * t / 2,
        (t - 1.0) * t * t / 2,
    )
    index = first.astype(np.int64) + np.arange(-1, 3)[:, None]
    return np.clip(index, 0, length - 1), np.stack(weights)


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputRejected("a transform is a JSON object with names and values.")
    for key, value in _FIXED.items():
        if content.get(key) != value:
            raise InputRejected(
                f"'{key}' is {content.get(key)!r}, this program reads {value!r}. Register again."
            )
    if missing := [key for key in _KEYS if key not in content]:
        raise InputRejected(f"it lacks {', '.join(missing)}.")
    if unknown := sorted(set(content) - set(_KEYS) - set(_FIXED)):
        raise InputRejected(f"it has unknown keys {', '.join(unknown)}.")
    if not isinstance(content["provenance"], dict):
        raise InputRejected("its provenance is not a table of names and values.")
    return {key: content[key] for key in _KEYS}


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _positions(xy_nm: ArrayLike) -> FloatArray:
    positions = np.asarray(xy_nm, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise InputRejected(f"positions are (N, 2), x before y, got {positions.shape}.")
    return positions


def _terms(degree: int) -> int:
    return (degree + 1) * (degree + 2) // 2


def _exponents(degree: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Exponents of u_x and u_y of every term."""
    total = np.repeat(np.arange(degree + 1), np.arange(1, degree + 2))
    of_y = np.concatenate([np.arange(n + 1) for n in range(degree + 1)])
    return total - of_y, of_y
