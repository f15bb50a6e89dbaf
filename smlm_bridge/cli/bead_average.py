"""``calibrate --psf spline`` and ``--psf gaussian``: averaged beads instead of a retrieved pupil."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from smlm_bridge.cli.common import Run
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    from smlm_bridge.io.setup import Setup

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

    from smlm_bridge.beads import BeadOptions, calibrate_beads
    from smlm_bridge.io.calibration import save_calibration
    from smlm_bridge.io.images import read_stack, write_stack

    start = time.perf_counter()
    images = [read_stack(path) for path in stacks]
    kind = cast(Literal["spline", "gaussian"], psf)
    with run.steps("averaging beads") as on_step:
        result = calibrate_beads(
            images, known.optics, BeadOptions(**options), kind=kind, camera=known.camera, on_step=on_step
        )
    save_calibration(output, result.calibration, overwrite=run.overwrite)
    if model_stack is not None:
        pixel_nm = known.optics.pixel_nm
        write_stack(model_stack, result.model_stack, pixel_nm=pixel_nm, axes="ZYX", overwrite=run.overwrite)
    values: dict[str, Any] = {
        "rrse": result.rrse,
        "mean_slice_correlation": result.mean_slice_correlation,
        "held_out": None,
        "analyser_deg": None,
        "log_likelihood": None,
        "twin": None,
        "zernike_rad": None,
        "seconds": time.perf_counter() - start,
        "beads": result.beads,
        "used": result.used,
        "z_range_nm": result.calibration.z_range_nm,
    }
    shown = {key: value for key, value in values.items() if value is not None}
    return Summary(values, aligned({"calibration": str(output), "psf": psf, **shown}))
