"""``calibrate --psf spline`` and ``--psf gaussian``: averaged beads instead of a retrieved pupil."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from smlm_bridge.cli.common import Run
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smlm_bridge.beads import BeadPairResult, BeadResult
    from smlm_bridge.calibration import Calibration
    from smlm_bridge.io.setup import Setup
    from smlm_bridge.pair import PairCalibration

BOUND_HEIGHTS, BOUND_PX = 21, 31
NO_OPTICS = "the microscope is missing: give --setup FILE.toml with [optics], or options of the same names."


def calibrate_average(
    run: Run,
    stacks: tuple[Path, ...],
    *,
    known: "Setup",
    psf: str,
    output: Path,
    options: dict[str, Any],
    model_stack: Path | None,
    report: Path | None,
    unused: dict[str, Any],
) -> Summary:
    """Average the beads of all stacks; ``unused`` are options that belong to a pupil, by name."""
    for name, value in unused.items():
        if value is not None:
            raise UsageError(
                f"{name} belongs to --psf pupil; with --psf {psf} nothing uses it. Leave it out."
            )
    if known.optics is None:
        raise UsageError(NO_OPTICS)
    import time

    import numpy as np

    from smlm_bridge.beads import BeadOptions, calibrate_bead_pair, calibrate_beads
    from smlm_bridge.io.calibration import save_calibration
    from smlm_bridge.io.images import read_stack, write_stack

    start = time.perf_counter()
    images = [read_stack(path) for path in stacks]
    kind = cast(Literal["spline", "gaussian"], psf)
    found: Any
    with run.steps("averaging beads") as on_step:
        calibrate = calibrate_bead_pair if images[0].ndim == 4 else calibrate_beads
        found = calibrate(
            images, known.optics, BeadOptions(**options), kind=kind, camera=known.camera, on_step=on_step
        )
    results: list[BeadResult] = list(found.channels) if images[0].ndim == 4 else [found]
    save_calibration(output, found.calibration, overwrite=run.overwrite)
    if model_stack is not None:
        models = [result.model_stack for result in results]
        model, axes = (np.stack(models, axis=1), "ZCYX") if len(models) > 1 else (models[0], "ZYX")
        write_stack(model_stack, model, pixel_nm=known.optics.pixel_nm, axes=axes, overwrite=run.overwrite)
    doubts = [text for result in results for text in result.warnings]
    for text in doubts:
        warnings.warn(text, stacklevel=2)
    values: dict[str, Any] = {
        "rrse": max(result.rrse for result in results),
        "mean_slice_correlation": min(result.mean_slice_correlation for result in results),
        "held_out": None,
        "analyser_deg": None,
        "log_likelihood": None,
        "twin": None,
        "zernike_rad": None,
        "seconds": time.perf_counter() - start,
        "beads": min(result.beads for result in results),
        "used": min(result.used for result in results),
        "z_range_nm": found.calibration.z_range_nm,
        "warnings": doubts,
        **(_together(found) if len(results) > 1 else {}),
    }
    if report is not None:
        first = list(images[0]) if len(results) > 1 else [images[0]]
        _write_report(report, found, results, first, stacks[0].name, overwrite=run.overwrite)
    shown = {key: value for key, value in values.items() if value is not None}
    return Summary(values, aligned({"calibration": str(output), "psf": psf, **shown}))


def _together(found: "BeadPairResult") -> dict[str, Any]:
    """Numbers of both channels together."""
    return {
        "channels": 2,
        "beads_in_both": found.registration.beads,
        "photon_ratio": found.calibration.photon_ratio,
        "target_registration_error_nm": found.registration.target_registration_error_nm,
    }


def _write_report(
    path: Path,
    found: "BeadResult | BeadPairResult",
    results: "list[BeadResult]",
    first: "list[NDArray[Any]]",
    title: str,
    *,
    overwrite: bool,
) -> None:
    """The page about the calibration, with the bound where torch is there to compute it."""
    from smlm_bridge.beads import BeadPairResult
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.report.averaged import averaged_page

    numbers = _together(found) if isinstance(found, BeadPairResult) else None
    page = averaged_page(results, first, title=title, crlb=_bound(found.calibration), numbers=numbers)
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _bound(known: "Calibration | PairCalibration") -> Any:
    """The table of the bound; None without torch, or where there is none."""
    from smlm_bridge.errors import InputRejected

    try:
        import numpy as np
        import torch

        from smlm_bridge.cli.crlb import channels_of
        from smlm_bridge.crlb import Unknowns
        from smlm_bridge.crlb_channels import crlb_channels_table

        heights = [float(z) for z in np.linspace(*known.z_range_nm, BOUND_HEIGHTS)]
        parts = [(c.psf(dtype=torch.float64), c.camera, Unknowns()) for c in known.channels]
        return crlb_channels_table(
            channels_of(known, parts, background=20), z_nm=heights, photons=5000, size_px=BOUND_PX
        )
    except (ImportError, InputRejected):
        return None
