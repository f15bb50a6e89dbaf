"""What a fit says of each box."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected

Floats = NDArray[np.float64]


class Status(IntEnum):
    """How a fit ended; ``MESSAGES`` says it in words."""

    CONVERGED = 0
    LIMITED = 1
    STUCK = 2
    Z_EDGE = 3
    LEFT_BOX = 4
    NO_LIGHT = 5
    UNDETERMINED = 6


MESSAGES: Final = {
    Status.CONVERGED: "converged",
    Status.LIMITED: "not converged within the allowed iterations",
    Status.STUCK: "no step improves the likelihood: the box does not look like an emitter",
    Status.Z_EDGE: "the height lies at the edge of the range that was calibrated",
    Status.LEFT_BOX: "the emitter left its box",
    Status.NO_LIGHT: "no light above the background",
    Status.UNDETERMINED: "the image does not determine every parameter",
}
_COLUMNS: Final = {
    "x_nm": "uncertainty_x_nm",
    "y_nm": "uncertainty_y_nm",
    "z_nm": "uncertainty_z_nm",
    "photons": "uncertainty_photons",
}


@dataclass(frozen=True, eq=False)
class FitResult:
    """Fits of N boxes with P parameters each.

    Parameters
    ----------
    names : (P,)
        ``x_nm``, ``y_nm``, then ``z_nm`` or ``psf_sigma_nm`` if fitted, ``photons``, ``background`` (and
        ``background2`` of a second channel), ``zernike_J`` in rad. Positions refer to the frame the boxes were cut
        from; photons are those of all channels.
    values, bounds : (N, P)
        Estimates, and the lowest standard deviations (Cramér and Rao) at them; ``inf`` where the image does not
        determine a parameter.
    log_likelihood : (N,)
        Of the data under the fit. With read noise or EM gain it is that of the shifted, scaled counts which
        stand for them.
    chi2, p_value : (N,)
        Pearson's chi^2, and the chance of a larger one if the model is right.
    iterations : (N,)
        Steps taken, those of discarded starts included.
    status : (N,)
        Of ``Status``.
    other, other_log_likelihood : (N, P), (N,)
        A second solution at another height that the data do not rule out; not a number where there is none.
    """

    names: tuple[str, ...]
    values: Floats
    bounds: Floats
    log_likelihood: Floats
    chi2: Floats
    p_value: Floats
    iterations: NDArray[np.int64]
    status: NDArray[np.int64]
    other: Floats
    other_log_likelihood: Floats

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Floats:
        """Estimates (N,) of one parameter."""
        return self.values[:, self._index(name)]

    def bound(self, name: str) -> Floats:
        """Lowest standard deviations (N,) of one parameter."""
        return self.bounds[:, self._index(name)]

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which fits converged."""
        return np.asarray(self.status == Status.CONVERGED)

    @property
    def ambiguous(self) -> NDArray[np.bool_]:
        """Which fits have a second solution."""
        return np.asarray(np.isfinite(self.other_log_likelihood))

    @property
    def messages(self) -> list[str]:
        """Every fit's status in words."""
        return [MESSAGES[Status(code)] for code in self.status]

    def table(self, frame: NDArray[np.integer] | None = None) -> pd.DataFrame:
        """One row a fit, named as in ``locs.SCHEMA``, in the order of the boxes.

        Beyond the schema: ``log_likelihood``, ``chi2``, ``p_value``, ``iterations``, ``status`` and, of an
        ambiguous fit, ``other_x_nm``, ``other_y_nm``, ``other_z_nm`` and ``other_log_likelihood``.

        Parameters
        ----------
        frame : (N,)
            Each box's frame; None makes all 0.

        Raises
        ------
        InputRejected
            If there is not one frame a box.
        """
        frames = np.zeros(len(self), np.int64) if frame is None else np.asarray(frame, dtype=np.int64)
        if frames.shape != (len(self),):
            raise InputRejected(f"give one frame a box: {len(self)} boxes, frames of shape {frames.shape}.")
        columns: dict[str, NDArray[np.generic]] = {"frame": frames}
        columns |= {name: self[name] for name in self.names}
        sigma_x, sigma_y = self.bound("x_nm"), self.bound("y_nm")
        columns["uncertainty_xy_nm"] = np.sqrt((sigma_x**2 + sigma_y**2) / 2)
        columns |= {_COLUMNS[name]: self.bound(name) for name in self.names if name in _COLUMNS}
        for name in ("log_likelihood", "chi2", "p_value", "iterations", "status"):
            columns[name] = getattr(self, name)
        if "z_nm" in self.names:
            for name in ("x_nm", "y_nm", "z_nm"):
                columns[f"other_{name}"] = self.other[:, self._index(name)]
            columns["other_log_likelihood"] = self.other_log_likelihood
        return pd.DataFrame(columns)

    def _index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InputRejected(
                f"this fit has no parameter {name!r}; it has {', '.join(self.names)}."
            ) from None
