"""``localize``: frames to a ThunderSTORM table."""

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from smlm_bridge.errors import InputRejected, SmlmError, UsageError

if TYPE_CHECKING:
    from smlm_bridge.camera import Camera
    from smlm_bridge.cluster.engines import Engine
    from smlm_bridge.cluster.movie import Localized, Shard
    from smlm_bridge.cluster.recipe import Recipe
    from smlm_bridge.io.images import FrameSource
    from smlm_bridge.io.parts import PartStore
    from smlm_bridge.model import ModelInfo

PIXEL_TOLERANCE = 0.02


@verb(
    "localize",
    units="x, y, z and uncertainties in nm, from the outer top-left corner of the whole movie; photons in "
    "photo-electrons; frames from 1.",
    example="smlm-bridge localize movie.tif -o table.csv --model tetrapod --offset 100 --e-per-adu 0.45",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@output_option("ThunderSTORM table, .csv; a folder: one table for each file of FRAMES.")
@click.option("--model", metavar="MODEL", help="A model file (.onnx) or the name of a shipped one.")
@click.option("--calibration", metavar="CAL", help="Detect and fit with this PSF (not built yet).")
@click.option("--threshold", type=float, help="Least probability, 0 to 1; absent: the model's.")
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@file_option("--preview", "The super-resolved picture, .png.")
@file_option("--report", "A self-contained page about the run, .html.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted; skip what is done.")
@click.option(
    "--workers",
    metavar="N|ADDRESS",
    help="Processes on this machine, tcp://HOST:PORT of a dask scheduler, or slurm[:FILE.yaml].",
)
@click.option("--shard", metavar="I/N", help="Only part I of N of the blocks, for job arrays; see --resume.")
@click.option("--block-frames", type=click.IntRange(min=1), help="Frames in a block; the table is the same.")
@not_built("--detector", "--detector-threshold", "--channel2", "--split", flags=("--refine",))
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
    resume: bool,
    workers: str | None,
    shard: str | None,
    block_frames: int | None,
    setup: SetupReader,
) -> Summary:
    """Localize the emitters in FRAMES: TIFF files in order, a folder or a quoted pattern.

    The model carries its calibration; of --setup only [camera] is read, and options of the camera win over
    the model's. x, y and frame refer to the whole movie also with --frames and --roi. Beside the table its
    protocol (.protocol.json) says how it was made.

    Blocks of frames that are done are kept in TABLE.parts until the table is written: after an interruption
    --resume goes on there. Several FRAMES are one movie if the output is a table, and movies of their own if
    it is a folder.
    """
    if calibration is not None:
        refuse_not_built("localizing with --calibration (detect and fit)")
    required(model, "give --model MODEL: a .onnx file or a name that 'smlm-bridge models' lists.")
    many = output.is_dir() or not output.suffix
    if many and (preview or report or shard):
        raise UsageError(
            f"--preview, --report and --shard go with one table; the output {output} is a folder."
        )
    from smlm_bridge.cluster.engines import engine
    from smlm_bridge.cluster.recipe import absolute_model

    job = _Job(
        run,
        model=absolute_model(str(model)),
        threshold=threshold,
        frames=frames,
        roi=roi,
        resume=resume,
        workers=workers,
        shard=_shard(shard),
        block_frames=block_frames,
        setup=setup,
        preview=preview,
        report=report,
    )
    with engine(workers) as running:
        return job.folder(frames_in, output, running) if many else job.table(frames_in, output, running)


@dataclass(frozen=True)
class _Job:
    """The options of one call, and what is done with a movie."""

    run: Run
    model: str
    threshold: float | None
    frames: tuple[int, int] | None
    roi: tuple[int, int, int, int] | None
    resume: bool
    workers: str | None
    shard: "Shard | None"
    block_frames: int | None
    setup: SetupReader
    preview: Path | None = None
    report: Path | None = None

    def folder(self, frames_in: Sequence[str], output: Path, running: "Engine") -> Summary:
        """One table for each file; a bad file does not stop the rest."""
        from smlm_bridge.io.images import movie_files

        began = time.monotonic()
        output.mkdir(exist_ok=True)
        files = movie_files(frames_in)
        names = [file.stem for file in files]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputRejected(
                f"several files are called {', '.join(twice[:3])}; their tables would have the same name. "
                "Localize them in separate calls."
            )
        found: dict[str, int] = {}
        bad: dict[str, str] = {}
        totals = {"frames": 0, "localizations": 0, "failed_frames": 0}
        quiet = replace(self, run=replace(self.run, progress="none"))
        with self.run.steps("movies") as on_step:
            for number, file in enumerate(files):
                target = output / f"{file.stem}.csv"
                try:
                    values = quiet.table([str(file)], target, running).values
                except (SmlmError, OSError) as error:
                    bad[str(file)] = str(error)
                    warnings.warn(f"{file}: {error}", stacklevel=2)
                else:
                    found[str(target)] = int(str(values["localizations"]))
                    totals = {key: totals[key] + int(str(values[key])) for key in totals}
                on_step(number + 1, len(files))
        result: dict[str, object] = {
            **totals,
            "seconds": time.monotonic() - began,
            "coverage": None,
            "tables": found,
            "failed_files": bad,
        }
        shown = {**totals, "tables": len(found), "failed files": bad}
        return Summary(result, aligned({"folder": str(output), **shown}), exit_code=1 if bad else 0)

    def table(self, frames_in: Sequence[str], output: Path, running: "Engine") -> Summary:
        """One table of one movie."""
        from smlm_bridge.cluster.engines import size_of_team
        from smlm_bridge.cluster.movie import localize_parts, merged, parts_folder
        from smlm_bridge.io.thunderstorm import write_protocol, write_table

        began = time.monotonic()
        recipe, info, n_frames = self._recipe(frames_in)
        made = _protocol(frames_in, info, recipe)
        if self.resume and output.exists():
            return _done_before(output, made)
        self.run.outputs(output, output.with_suffix(".protocol.json"), self.preview, self.report)
        with self.run.steps("localizing") as on_step:
            store = localize_parts(
                recipe,
                parts_folder(output),
                running,
                team=size_of_team(self.workers),
                resume=self.resume,
                restart=self.run.overwrite,
                shard=self.shard,
                block_frames=self.block_frames,
                on_step=on_step,
            )
        if self.shard is not None:
            return _shard_done(store, n_frames, seconds=time.monotonic() - began)
        result = merged(store)
        write_table(output, result.table, overwrite=self.run.overwrite)
        values: dict[str, object] = {
            "frames": n_frames,
            "localizations": len(result.table),
            "failed_frames": len(result.failed),
            "failures": {frame + 1: reason for frame, reason in result.failed.items()},
            "seconds": time.monotonic() - began,
            "coverage": None,
        }
        write_protocol(output, {**made, **values}, overwrite=self.run.overwrite)
        store.remove()
        self._pictures(recipe, result, info, made)
        shown = {key: value for key, value in values.items() if key != "failures"}
        return Summary(values, aligned({"table": str(output), **shown}))

    def _recipe(self, frames_in: Sequence[str]) -> "tuple[Recipe, ModelInfo, int]":
        """How the movie is localized, by what, and its number of frames; what cannot work is refused here."""
        from smlm_bridge.cluster.recipe import Recipe, loaded_model
        from smlm_bridge.io.images import open_frames

        threads, device = self.run.threads, _onnx_device(self.run.device_name)
        info = loaded_model(self.model, threads, device).info
        inputs = tuple(str(Path(name).absolute()) for name in frames_in)
        with open_frames(inputs, frames=self.frames, roi=self.roi) as source:
            known = info.calibration.camera
            camera = camera_of(source, self.setup(known).camera or known)
            _check(source, info, camera)
            recipe = Recipe(
                inputs, self.model, camera, self.frames, self.roi, self.threshold, device, threads
            )
            return recipe, info, source.n_frames

    def _pictures(
        self, recipe: "Recipe", result: "Localized", info: "ModelInfo", made: dict[str, Any]
    ) -> None:
        """Write the picture and the page that were asked for."""
        if self.preview is None and self.report is None:
            return
        from smlm_bridge.io.atomic import atomic_output
        from smlm_bridge.report import localization_page, preview_png

        overwrite = self.run.overwrite
        with recipe.opened() as (source, _work):
            first = None if source.first_frame in result.failed else source.read(0, 1)[0, 0]
        known = info.calibration
        seen: dict[str, Any] = {
            "frame_shape": (source.height, source.width),
            "pixel_nm": known.optics.pixel_nm,
            "origin_px": (source.x0, source.y0),
            "z_range_nm": known.z_range_nm,
        }
        if self.preview is not None:
            picture = preview_png(
                result.table, first_frame=first, first_frame_index=source.first_frame, **seen
            )
            with atomic_output(self.preview, overwrite=overwrite) as temporary:
                temporary.write_bytes(picture)
        if self.report is not None:
            page = localization_page(
                result.table,
                title=", ".join(Path(name).name for name in made["input"]),
                example_frame=first,
                example_frame_index=source.first_frame,
                failed_frames=result.failed,
                provenance=made,
                n_frames=source.first_frame + source.n_frames,
                **seen,
            )
            with atomic_output(self.report, overwrite=overwrite) as temporary:
                temporary.write_text(page, encoding="utf-8")


def _shard(text: str | None) -> "Shard | None":
    if text is None:
        return None
    from smlm_bridge.cluster.movie import Shard

    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise UsageError(f"--shard {text}: give I/N, for example 3/16.")
    return Shard(int(match[1]), int(match[2]))


def _shard_done(store: "PartStore", frames: int, *, seconds: float) -> Summary:
    """The summary of one shard: the table is written by the last call, with --resume and without --shard."""
    left = len(store.missing())
    values: dict[str, object] = {
        "frames": frames,
        "localizations": None,
        "failed_frames": None,
        "seconds": seconds,
        "coverage": None,
        "parts_missing": left,
    }
    todo = "run the other shards" if left else "write the table: the same call with --resume, without --shard"
    shown = {"parts": str(store.folder), "parts missing": left, "next": todo}
    return Summary(values, aligned(shown))


def _done_before(output: Path, made: dict[str, Any]) -> Summary:
    """The summary of a table that is complete already, from its protocol."""
    from smlm_bridge.io.thunderstorm import read_protocol

    known = read_protocol(output)
    differing = [key for key in made if known.get(key) != made[key]]
    if differing:
        raise InputRejected(
            f"output {output} exists and was made otherwise ({', '.join(differing)} differ); choose another name "
            "or give --overwrite."
        )
    keys = ("frames", "localizations", "failed_frames", "failures", "seconds", "coverage")
    values = {key: known.get(key) for key in keys}
    return Summary(values, f"{output} is complete already; nothing was done.")


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


def _check(source: "FrameSource", info: "ModelInfo", camera: "Camera") -> None:
    """Refuse before the first frame what would fail in every frame."""
    import numpy as np

    if source.n_channels != info.channels:
        raise InputRejected(
            f"the model '{info.name}' takes {info.channels} channel(s), the frames have "
            f"{source.n_channels}. Choose another model, or give one channel."
        )
    camera.to_photons(np.zeros((1, source.height, source.width), np.float32))
    wanted = info.calibration.optics.pixel_nm
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


def _protocol(frames_in: Sequence[str], info: "ModelInfo", recipe: "Recipe") -> dict[str, Any]:
    """How the table was made; maps of the camera by their mean."""
    import numpy as np

    camera = recipe.camera
    numbers = {
        name: float(np.mean(getattr(camera, name))) for name in ("offset", "e_per_adu", "read_noise_e")
    }
    return {
        "made_by": f"smlm_bridge {__version__}, localize",
        "input": list(frames_in),
        "model": info.name,
        "calibration_hash": info.calibration.hash,
        "pixel_nm": info.calibration.optics.pixel_nm,
        "camera": {**numbers, "em_gain": camera.em_gain, "quantum_efficiency": camera.quantum_efficiency},
        "options": {
            "threshold": recipe.threshold or info.threshold,
            "frames": None if recipe.frames is None else list(recipe.frames),
            "roi": None if recipe.roi is None else list(recipe.roi),
        },
    }
