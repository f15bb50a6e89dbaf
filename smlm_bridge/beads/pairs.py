"""Bead stacks of two channels to one calibration of the pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smlm_bridge.beads.calibrate import BeadOptions, BeadResult, calibrate_beads
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.optics.microscope import Optics
from smlm_bridge.pair import PairCalibration
from smlm_bridge.register import Registration, register


@dataclass(frozen=True)
class BeadPairResult:
    """A calibration of both channels, what each channel gave, and how they lie on each other."""

    calibration: PairCalibration
    channels: tuple[BeadResult, BeadResult]
    registration: Registration


def calibrate_bead_pair(
    stacks: Sequence[NDArray[Any]],
    optics: Optics,
    options: BeadOptions,
    *,
    kind: Literal["spline", "gaussian"],
    camera: Camera | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> BeadPairResult:
    """Calibrate each channel, with heights that mean the same, and register the beads of both.

    Parameters
    ----------
    stacks
        Counts (2, Z, Y, X) of fields with beads that both channels show.
    optics, options, kind, camera
        As for ``calibrate_beads``, of either channel. Without ``first_focus_nm`` the sharpest slices of channel 1
        decide for both.
    on_step
        Called with steps done and all steps.

    Raises
    ------
    InputRejected
        As ``calibrate_beads`` and ``register``: at least 6 beads must be seen by both channels.
    """
    if any(stack.ndim != 4 or len(stack) != 2 for stack in stacks):
        raise InputRejected(
            f"stacks of two channels are (2, z, y, x), got {[stack.shape for stack in stacks]}. Give files with "
            "two channels each."
        )
    report = on_step or (lambda done, total: None)

    def calibrated(channel: int, chosen: BeadOptions) -> BeadResult:
        def step(done: int, total: int) -> None:
            report(channel * total + done, 2 * total + 1)

        return calibrate_beads(
            [stack[channel] for stack in stacks], optics, chosen, kind=kind, camera=camera, on_step=step
        )

    first = calibrated(0, options)
    second = calibrated(1, replace(options, first_focus_nm=_first_focus_nm(first, optics)))
    found = register(first.positions, second.positions)
    ratio = found.photon_ratio or 1.0
    provenance = {
        "method": f"averaged beads of two channels, {kind}",
        "beads": found.beads,
        "target_registration_error_nm": found.target_registration_error_nm,
    }
    pair = PairCalibration(first.calibration, second.calibration, found.transform, ratio, provenance)
    report(9, 9)
    return BeadPairResult(pair, (first, second), found)


def _first_focus_nm(result: BeadResult, optics: Optics) -> float:
    """Focus of slice 0 that gives the heights of a calibration; see ``beads.calibrate._heights``."""
    moved = float(np.asarray(result.heights_nm)[0]) * optics.immersion_index / optics.sample_index
    return optics.focus_nm - moved
