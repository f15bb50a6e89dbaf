"""How a frame is refined, and what comes of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected
from smlm_bridge.multi.group import Emitters

Floats = NDArray[np.float64]
Frames = NDArray[np.float32]


@dataclass(frozen=True)
class RefineOptions:
    """How a frame is refined.

    Parameters
    ----------
    add_gain
        Gain in log-likelihood that an added emitter must bring.
    keep_gain
        Loss in log-likelihood that removing an emitter must cost, else it goes.
    least_photons
        Dimmer emitters go, whatever their gain: what a PSF that is not quite right leaves of bright ones.
    most_photons
        Brighter emitters may be two in one place; 0: nothing is known of that.
    told_photons
        Dimmer emitters are fitted with the others, but left out of tables: a model that was trained to leave them
        out says so in its ranges.
    rounds, passes
        Times that emitters are added with the background held, and times that all are fitted again before
        more are added; 0 only moves, fits and removes.
    node_px
        Spacing of the background's nodes.
    group
        Most emitters that are fitted at once.
    step_nm
        Spacing of the heights that are searched.
    model_error
        Share of an emitter's light that the PSF does not describe, as the residual of its calibration says.
        It counts as noise, and what it leaves in the residual asks for no emitters.
    """

    add_gain: float = 16.0
    keep_gain: float = 10.0
    least_photons: float = 0.0
    most_photons: float = 0.0
    told_photons: float = 0.0
    rounds: int = 5
    passes: int = 3
    node_px: float = 12.0
    group: int = 60
    step_nm: float = 125.0
    model_error: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.model_error < 1:
            raise InputRejected(f"model_error {self.model_error} is a share of light, from 0 to below 1.")
        if (
            min(self.add_gain, self.keep_gain) <= 0
            or min(self.rounds, self.passes) < 0
            or self.node_px < 4
            or self.group < 1
        ):
            raise InputRejected(
                "refining needs gains above 0, rounds and passes of 0 or more, node_px of 4 or more and groups of "
                f"1 or more, got {self}."
            )


@dataclass(frozen=True)
class Refined:
    """The emitters of one frame.

    Parameters
    ----------
    emitters
        Positions, blur and photons.
    sigma : (n, 3 + B + C)
        Bounds as in ``GroupFit``.
    origin : (n,)
        Row of the start that an emitter came from, -1 if it was added.
    support : (n,)
        Loss of log-likelihood if the emitter were removed.
    background : (n, C)
        At the emitter, photo-electrons a pixel.
    images, floor : (C, H, W)
        Expectation of the emitters, and of the background.
    """

    emitters: Emitters
    sigma: Floats
    origin: NDArray[np.int64]
    support: Floats
    background: Floats
    images: Frames
    floor: Frames
