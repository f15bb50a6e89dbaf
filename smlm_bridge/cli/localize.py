"""``localize``: frames to a ThunderSTORM table."""

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge import __version__
from smlm_bridge.cli.common import (
    Run,
    SetupReader,
    file_option,
    not_built,
    output_option,
    required,
    setup_options,
    verb,
)
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.cli.verbs import refuse_not_built
from smlm_bridge.errors import InputRejected, SmlmError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from smlm_bridge.camera import Camera
    from smlm_bridge.frames import Block
    from smlm_bridge.io.images import FrameSource
    from smlm_bridge.model import Model

PIXEL_TOLERANCE = 0.02


@verb(
    "localize",
    units="x, y, z and uncertainties in nm, from the outer top-left corner of the whole movie; photons in "
    "photo-electrons; frames from 1.",
    example="smlm-bridge localize movie.tif -o table.csv --model tetrapod --offset 100 --e-per-adu 0.45",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@output_option("ThunderSTORM table, .csv.")
@click.option("--model", metavar="MODEL", help="A model file (.onnx) or the name of a shipped one.")
@click.option("--calibration", metavar="CAL", help="Detect and fit with this PSF (not built yet).")
@click.option("--threshold", type=float, help="Least probability, 0 to 1; absent: the model's.")
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@file_option("--preview", "The super-resolved picture, .png.")
@file_option("--report", "A self-contained page about the run, .html.")
@not_built(
    "--detector", "--detector-threshold", "--workers", "--channel2", "--split",
    flags=("--refine", "--resume"),
)  # fmt: skip
@setup_options(optics=False)
def command(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    output: Path,
    model: str | None,
    calibration: str | None,
    threshold: float | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    preview: Path | None,
    report: Path | None,
    setup: SetupReader,
) -> Summary:
    """Localize the emitters in FRAMES: TIFF files in order, a folder or a quoted pattern.

    The model carries its calibration; of --setup only [camera] is read, and options of the camera win over
    the model's. x, y and frame refer to the whole movie also with --frames and --roi. Beside the table its
    protocol (.protocol.json) says how it was made.
    """
    if calibration is not None:
        refuse_not_built("localizing with --calibration (detect and fit)")
    required(model, "give --model MODEL: a .onnx file or a name that 'smlm-bridge models' lists.")
    run.outputs(output, output.with_suffix(".protocol.json"), preview, report)
    from smlm_bridge.io.images import open_frames
    from smlm_bridge.io.model import load_model
    from smlm_bridge.io.thunderstorm import write_protocol, write_table
    from smlm_bridge.localize import LocalizeOptions, localize

    began = time.monotonic()
    options = LocalizeOptions(threshold=threshold)
    network = load_model(str(model), threads=run.threads, device=_onnx_device(run.device_name))
    with open_frames(frames_in, frames=frames, roi=roi) as source, run.steps("localizing") as on_step:
        known = network.info.calibration.camera
        camera = camera_of(source, setup(known).camera or known)
        _check(source, network, camera)
        blocks = localize(source, network, camera=camera, options=options, on_step=on_step)
        result = _collect(blocks, source)
    write_table(output, result.table, overwrite=run.overwrite)
    values = {
        "frames": source.n_frames,
        "localizations": len(result.table),
        "failed_frames": len(result.failed),
        "failures": {frame + 1: reason for frame, reason in result.failed.items()},
        "seconds": time.monotonic() - began,
        "coverage": None,
    }
    made = _protocol(frames_in, network, camera, threshold=threshold, frames=frames, roi=roi)
    write_protocol(output, {**made, **values}, overwrite=run.overwrite)
    _pictures(run, result, source, network, made, preview=preview, report=report)
    return Summary(
        values, aligned({"table": str(output), **{k: v for k, v in values.items() if k != "failures"}})
    )


@dataclass(frozen=True)
class _Result:
    """All blocks together, and the first frame to show; ``failed`` maps a frame (from 0) to the reason."""

    table: "pd.DataFrame"
    failed: dict[int, str]
    first_frame: "NDArray[Any] | None"


def _collect(blocks: "Iterable[Block]", source: "FrameSource") -> _Result:
    import pandas as pd

    tables: list[pd.DataFrame] = []
    failed: dict[int, str] = {}
    for block in blocks:
        tables.append(block.table)
        failed.update(block.failed)
    if failed and len(failed) == source.n_frames:
        raise SmlmError(f"every frame failed; frame {min(failed) + 1}: {failed[min(failed)]}")
    filled = [table for table in tables if len(table)] or tables[:1]
    first = None if source.first_frame in failed else source.read(0, 1)[0, 0]
    return _Result(pd.concat(filled, ignore_index=True), failed, first)


def _pictures(
    run: Run,
    result: _Result,
    source: "FrameSource",
    network: "Model",
    made: dict[str, Any],
    *,
    preview: Path | None,
    report: Path | None,
) -> None:
    """Write the picture and the page that were asked for."""
    if preview is None and report is None:
        return
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.report import localization_page, preview_png

    known = network.info.calibration
    seen: dict[str, Any] = {
        "frame_shape": (source.height, source.width),
        "pixel_nm": known.optics.pixel_nm,
        "origin_px": (source.x0, source.y0),
        "z_range_nm": known.z_range_nm,
    }
    if preview is not None:
        picture = preview_png(
            result.table, first_frame=result.first_frame, first_frame_index=source.first_frame, **seen
        )
        with atomic_output(preview, overwrite=run.overwrite) as temporary:
            temporary.write_bytes(picture)
    if report is not None:
        page = localization_page(
            result.table,
            title=", ".join(Path(name).name for name in made["input"]),
            example_frame=result.first_frame,
            example_frame_index=source.first_frame,
            failed_frames=result.failed,
            provenance=made,
            n_frames=source.first_frame + source.n_frames,
            **seen,
        )
        with atomic_output(report, overwrite=run.overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")


def camera_of(source: "FrameSource", camera: "Camera") -> "Camera":
    """The camera of the region of a movie: maps of the whole chip are cut."""
    maps = [
        value for value in (camera.offset, camera.e_per_adu, camera.read_noise_e) if hasattr(value, "shape")
    ]
    if all(value.shape == (source.height, source.width) for value in maps):
        return camera
    if any(value.shape == (source.height, source.width) for value in maps):
        raise InputRejected(
            "the camera's maps differ in size; give all for the whole frame or all for the region."
        )
    return camera.crop(source.y0, source.x0, source.height, source.width)


def _check(source: "FrameSource", network: "Model", camera: "Camera") -> None:
    """Refuse before the first frame what would fail in every frame."""
    import numpy as np

    if source.n_channels != network.info.channels:
        raise InputRejected(
            f"the model '{network.info.name}' takes {network.info.channels} channel(s), the frames have "
            f"{source.n_channels}. Choose another model, or give one channel."
        )
    camera.to_photons(np.zeros((1, source.height, source.width), np.float32))
    wanted = network.info.calibration.optics.pixel_nm
    if source.pixel_nm and abs(source.pixel_nm / wanted - 1) > PIXEL_TOLERANCE:
        warnings.warn(
            f"the file says a pixel is {source.pixel_nm:g} nm, the model was trained for {wanted:g} nm; "
            "positions are in the model's.",
            stacklevel=2,
        )


def _onnx_device(name: str) -> str:
    """Answer ``auto`` by what ONNX Runtime has, without torch."""
    if name != "auto":
        return name
    import onnxruntime

    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def _protocol(
    frames_in: tuple[str, ...], network: "Model", camera: "Camera", **chosen: object
) -> dict[str, Any]:
    """How the table was made; maps of the camera by their mean."""
    import numpy as np

    numbers = {
        name: float(np.mean(getattr(camera, name))) for name in ("offset", "e_per_adu", "read_noise_e")
    }
    return {
        "made_by": f"smlm_bridge {__version__}, localize",
        "input": list(frames_in),
        "model": network.info.name,
        "calibration_hash": network.info.calibration.hash,
        "pixel_nm": network.info.calibration.optics.pixel_nm,
        "camera": {**numbers, "em_gain": camera.em_gain, "quantum_efficiency": camera.quantum_efficiency},
        "options": {**chosen, "threshold": chosen["threshold"] or network.info.threshold},
    }
