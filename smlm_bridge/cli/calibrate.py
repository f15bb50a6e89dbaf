"""``calibrate``: a bead stack to a calibration."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import (
    PATH,
    Run,
    SetupReader,
    file_option,
    output_option,
    required,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import ANALYSER, SLICES
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smlm_bridge.io.setup import Setup
    from smlm_bridge.optics.microscope import Optics
    from smlm_bridge.optics.pupil import Pupil
    from smlm_bridge.retrieve import Retrieval

NO_OPTICS = "the microscope is missing: give --setup FILE.toml with [optics], or options of the same names."
BOUND_HEIGHTS = 21
# Polarising splitters stand along the axes of the camera; other angles are given, not searched.
AUTO_ANALYSERS_DEG = (None, 0.0, 90.0)


@verb(
    "calibrate",
    units="lengths in nm, aberrations in rad; slices count from 0.",
    example="smlm-bridge calibrate beads.tif -o tetrapod.psf.h5 --setup microscope.toml --z-step-nm -100",
)
@click.argument("stacks", metavar="STACK...", nargs=-1, required=True, type=PATH)
@output_option("The calibration, .psf.h5.")
@click.option("--z-step-nm", type=float, required=True,
              help="Travel of the focus from slice to slice, positive into the sample.")  # fmt: skip
@click.option(
    "--first-focus-nm", type=float, help="Focus of slice 0; absent: where the pupil has no defocus."
)
@file_option(
    "--initial-mask", "Designed mask (.mat, TIFF) or calibration to start from; absent: the setup's mask."
)
@click.option("--bead-diameter-nm", type=float, help="Of the bead, on the coverslip; absent: 100.")
@click.option("--psf", type=click.Choice(["pupil", "spline", "gaussian"]), default="pupil", show_default=True,
              help="Model of the PSF.")  # fmt: skip
@click.option("--box-px", type=int, help="Window about a bead of --psf spline and gaussian, odd; absent: 31.")
@click.option("--analyser", type=ANALYSER, help="Linear analyser, degrees; auto lets the likelihood choose; "
              "absent: the setup's, else auto.")  # fmt: skip
@click.option("--method", type=click.Choice(["joint", "zelger"]), default="joint", show_default=True,
              help="How the pupil is fitted; zelger: as published in 2018, for comparison.")  # fmt: skip
@click.option("--fit-slices", type=SLICES, default="all", show_default=True,
              help="Slices that are fitted; the others are scored as held out.")  # fmt: skip
@file_option("--model-stack", "The fitted model of every slice in the data's own counts, .tif.")
@file_option("--report", "A self-contained page about the calibration, .html.")
@setup_options(mask=True)
def command(
    run: Run,
    stacks: tuple[Path, ...],
    *,
    output: Path,
    z_step_nm: float,
    first_focus_nm: float | None,
    initial_mask: Path | None,
    bead_diameter_nm: float | None,
    psf: str,
    box_px: int | None,
    analyser: str | float | None,
    method: str,
    fit_slices: str | tuple[int, int, int],
    model_stack: Path | None,
    report: Path | None,
    setup: SetupReader,
) -> Summary:
    """Retrieve the PSF of a microscope from STACK, beads at several focus positions.

    A STACK shows one bead, or is a raw field with many: those that stand alone are found, and all beads of all
    stacks are fitted together; one that disagrees with the others is left out, with the reason.

    --psf spline averages the beads that stand alone into a cubic spline, --psf gaussian fits the widths of an
    astigmatic Gaussian to their average; both see --box-px about a bead. Of a STACK with an axis C of two channels
    they make the calibration of the pair, with the transform and the ratio of photons of the beads that both show.

    The sign of --z-step-nm is never guessed: the mirrored solution fits nearly as well (its scores stand
    under 'twin'). The microscope comes from --setup or options of the same names.
    """
    run.outputs(output, model_stack, report)
    from smlm_bridge.io.calibration import check_name, save_calibration

    check_name(output)
    if psf != "pupil":
        from smlm_bridge.cli.bead_average import calibrate_average

        return calibrate_average(
            run,
            stacks,
            known=setup(),
            psf=psf,
            output=output,
            options={"z_step_nm": z_step_nm, "first_focus_nm": first_focus_nm, "box_px": box_px or 31},
            model_stack=model_stack,
            report=report,
            unused={
                "--initial-mask": initial_mask,
                "--bead-diameter-nm": bead_diameter_nm,
                "--analyser": analyser,
                "--method": None if method == "joint" else method,
                "--fit-slices": None if fit_slices == "all" else fit_slices,
            },
        )
    from smlm_bridge._optional import require
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.images import read_stack, write_stack

    require("torch", extra="train")
    from smlm_bridge.retrieve import RetrieveOptions, retrieve

    known = _setup(setup, initial_mask)
    optics, analysers = _analysers(required(known.optics, NO_OPTICS), analyser)
    images = [read_stack(path) for path in stacks]
    for path, image in zip(stacks, images, strict=True):
        if image.ndim == 4:
            refuse_not_built(f"calibrating two channels at once ({path} has {len(image)} channels)")
    stack = images[0]
    if model_stack is not None and len({image.shape for image in images}) > 1:
        raise InputRejected(
            "--model-stack holds stacks of one size; these differ. Cut them alike, or leave it out."
        )
    given: dict[str, Any] = {"method": method}
    if bead_diameter_nm is not None:
        given["bead_diameter_nm"] = bead_diameter_nm
    options = RetrieveOptions(
        z_step_nm=z_step_nm,
        first_focus_nm=first_focus_nm,
        fit_slices=_slices(fit_slices, len(stack)),
        analysers_deg=analysers,
        seed=run.given_seed or 0,
        **given,
    )
    initial = _initial(known, optics, initial_mask)
    with run.steps("calibrating") as on_step:
        result = retrieve(images, optics, options, camera=known.camera, initial=initial, on_step=on_step)
    _report_warnings(result)
    save_calibration(output, result.calibration, overwrite=run.overwrite)
    if model_stack is not None:
        fitted, axes = _model_images(result)
        write_stack(model_stack, fitted, pixel_nm=optics.pixel_nm, axes=axes, overwrite=run.overwrite)
    if report is not None:
        shown = result.beads[0].stack
        page = _page(result, images[shown], title=stacks[shown].name)
        with atomic_output(report, overwrite=run.overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return _summary(result, output)


def _setup(setup: SetupReader, initial_mask: Path | None) -> "Setup":
    """The setup, with the file of the option in place of its mask's."""
    if initial_mask is None or _is_calibration(initial_mask):
        return setup()
    return SetupReader(setup.path, {**setup.given, "file": str(initial_mask)})()


def _is_calibration(path: Path) -> bool:
    return path.name.endswith((".psf.h5", ".onnx"))


def _initial(known: "Setup", optics: "Optics", initial_mask: Path | None) -> "Pupil | None":
    if initial_mask is not None and _is_calibration(initial_mask):
        from smlm_bridge.io.calibration import load_calibration

        pupil = load_calibration(initial_mask).pupil
        if pupil is None:
            raise InputRejected(
                f"'{initial_mask}' is a Gaussian calibration; a start needs a pupil or a mask."
            )
        return pupil
    if known.mask is None:
        return None
    from smlm_bridge.io.setup import load_mask

    return load_mask(known.mask, optics)


def _analysers(optics: "Optics", analyser: str | float | None) -> "tuple[Optics, tuple[float | None, ...]]":
    """The optics, and the angles to choose from; none to choose from keeps the optics'."""
    if analyser == "none":
        return replace(optics, analyser_deg=None), ()
    if isinstance(analyser, float):
        return replace(optics, analyser_deg=analyser), ()
    if analyser is None and optics.analyser_deg is not None:
        return optics, ()
    return optics, AUTO_ANALYSERS_DEG


def _slices(chosen: str | tuple[int, int, int], count: int) -> list[int] | None:
    if chosen == "all":
        return None
    if isinstance(chosen, str):
        return list(range(("even", "odd").index(chosen), count, 2))
    first, last, step = chosen
    if last >= count:
        raise InputRejected(f"--fit-slices {first}:{last}:{step}: the stack has the slices 0 to {count - 1}.")
    return list(range(first, last + 1, step))


def _model_images(result: "Retrieval") -> "tuple[NDArray[Any], str]":
    """The fitted model of every stack, and its axes; several stacks stand along T."""
    import numpy as np

    if len(result.model_stacks) == 1:
        return result.model_stack, "ZYX"
    return np.stack(result.model_stacks), "TZYX"


def _report_warnings(result: "Retrieval") -> None:
    import warnings

    for text in result.warnings:
        warnings.warn(text, stacklevel=2)


def _page(result: "Retrieval", stack: "NDArray[Any]", *, title: str) -> str:
    """The report, with the bound where there is one."""
    import numpy as np
    import torch

    from smlm_bridge.crlb import crlb_table
    from smlm_bridge.report import calibration_page

    known = result.calibration
    heights = [float(z) for z in np.linspace(*known.z_range_nm, BOUND_HEIGHTS)]
    try:
        bound = crlb_table(
            known.psf(dtype=torch.float64),
            known.camera,
            z_nm=heights,
            photons=5000,
            background=20,
            size_px=61,
        )
    except InputRejected:  # a bound that does not exist is no reason to lose the page
        bound = None
    return calibration_page(result, stack, title=title, crlb=bound)


def _pupil_error(result: "Retrieval") -> float | None:
    """How much images of the beads' window change with twice the samples of the pupil."""
    from smlm_bridge.psf.sampling import sampling_error

    known = result.calibration
    if known.pupil is None:
        return None
    window_px = max(result.model_stack.shape[1:])
    return sampling_error(known.optics, known.pupil, window_px=window_px, z_range_nm=known.z_range_nm)


def _summary(result: "Retrieval", output: Path) -> Summary:
    calibration, doubt = result.calibration, result.uncertainty
    values: dict[str, Any] = {
        "rrse": result.rrse,
        "mean_slice_correlation": result.mean_slice_correlation,
        "held_out": result.held_out,
        "analyser_deg": calibration.optics.analyser_deg,
        "log_likelihood": result.log_likelihood,
        "twin": result.twin,
        "zernike_rad": result.zernike_rad,
        "seconds": result.seconds,
        "analysers": result.analysers,
        "z_range_nm": calibration.z_range_nm,
        "blur_nm": calibration.blur_nm,
        "pupil_error": _pupil_error(result),
        "warnings": result.warnings,
        "beads": [asdict(bead) for bead in result.beads],
        "zernike_sigma_rad": None if doubt is None else doubt.sigma_rad,
        "zernike_covariance": None if doubt is None else doubt.covariance,
        "spherical_focus_correlation": None if doubt is None else doubt.spherical_focus_correlation,
        "spherical_amplitude_correlation": None if doubt is None else doubt.spherical_amplitude_correlation,
    }
    long = ("zernike_rad", "twin", "warnings", "beads", "zernike_sigma_rad", "zernike_covariance")
    shown = {key: value for key, value in values.items() if key not in long}
    used = sum(not bead.rejected for bead in result.beads)
    shown["beads"] = f"{used} fitted, {len(result.beads) - used} set aside"
    largest = sorted(result.zernike_rad.items(), key=lambda item: -abs(item[1]))[:5]
    shown["largest Zernikes [rad]"] = ", ".join(f"Z{noll} {value:+.2f}" for noll, value in largest)
    return Summary(values, aligned({"calibration": str(output), **shown}))
