"""``localize``: frames to a ThunderSTORM table."""

import json
import re
import sys
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
    output_option,
    setup_options,
    verb,
)
from smlm_bridge.cli.movies import cameras_of, channel_options, check_channels, check_count, check_movie
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.cli.thunderstorm_group import Where, where_options
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.errors import InputRejected, SmlmError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.cluster.engines import Engine
    from smlm_bridge.cluster.movie import Localized, Shard
    from smlm_bridge.cluster.recipe import Recipe
    from smlm_bridge.coverage import Coverage
    from smlm_bridge.detect import DetectOptions, Finder
    from smlm_bridge.io.parts import PartStore

_CHECKED_OF_MANY = 1000  # localizations of a movie beside which its check costs little


@verb(
    "localize",
    units="x, y, z and uncertainties in nm, from the outer top-left corner of the whole movie; photons in "
    "photo-electrons; frames from 1.",
    example="smlm-bridge localize movie.tif -o table.csv --model tetrapod --offset 100 --e-per-adu 0.45",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@output_option("ThunderSTORM table, .csv; a folder: one table for each file of FRAMES.")
@click.option("--model", metavar="MODEL", help="A model file (.onnx) or the name of a shipped one.")
@click.option(
    "--calibration",
    metavar="CAL",
    help="Detect and fit with this PSF; beside --model it replaces the model's.",
)
@click.option("--threshold", type=float, help="Least probability, 0 to 1; absent: the model's.")
@click.option(
    "--refine", is_flag=True, help="Then fit all emitters of a frame together; removes and adds emitters."
)
@click.option(
    "--detector",
    type=click.Choice(["wavelet", "dog", "thunderstorm"]),
    help="How fits find candidates; absent: wavelet, as in ThunderSTORM. thunderstorm: the plugin itself, where "
    "it is found.",
)
@click.option(
    "--detector-threshold", metavar="EXPR", help="Threshold of the detector, e.g. 1.5*std(Wave.F1)."
)
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
@click.option(
    "--coverage/--no-coverage",
    default=True,
    help="Check at the end, on some boxes, whether the model is meant for these frames; of many movies the "
    f"first and those with {_CHECKED_OF_MANY} localizations or more.",
)
@channel_options
@where_options()
@setup_options(optics=False)
def command(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    output: Path,
    model: str | None,
    calibration: str | None,
    threshold: float | None,
    refine: bool,
    detector: str | None,
    detector_threshold: str | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    preview: Path | None,
    report: Path | None,
    resume: bool,
    workers: str | None,
    shard: str | None,
    block_frames: int | None,
    coverage: bool,
    channel2: str | None,
    split: str | None,
    setup: SetupReader,
    where: Where,
) -> Summary:
    """Localize the emitters in FRAMES: TIFF files in order, a folder or a quoted pattern.

    The model carries its calibration; of --setup only [camera] is read, and options of the camera win over
    the model's. x, y and frame refer to the whole movie also with --frames and --roi. Beside the table its
    protocol (.protocol.json) says how it was made.

    Blocks of frames that are done are kept in TABLE.parts until the table is written: after an interruption
    --resume goes on there. Several FRAMES are one movie if the output is a table, and movies of their own if
    it is a folder.

    With --calibration alone every emitter is detected and fitted in its own box by maximum likelihood; with
    --refine too, matching pursuit with the PSF finds them and overlapping ones are fitted together.
    """
    if model is None and calibration is None:
        raise UsageError(
            "give --model MODEL, a .onnx file or a name that 'smlm-bridge models' lists, or --calibration CAL to "
            "detect and fit."
        )
    if (detector or detector_threshold) and refine and model is None:
        raise UsageError(
            "--detector and --detector-threshold go with --calibration alone: --refine finds candidates itself."
        )
    check_channels(channel2, split)
    where.only_for("--detector thunderstorm", detector == "thunderstorm")
    if threshold is not None and model is None:
        raise UsageError("--threshold is the least probability of a network: it goes with --model.")
    many = output.is_dir() or not output.suffix
    if many and (preview or report or shard):
        raise UsageError(
            f"--preview, --report and --shard go with one table; the output {output} is a folder."
        )
    from smlm_bridge.cluster.engines import engine
    from smlm_bridge.cluster.recipe import absolute_calibration, absolute_model

    job = _Job(
        run,
        model=None if model is None else absolute_model(model),
        calibration=None if calibration is None else absolute_calibration(calibration),
        detect=_detect_options(detector, detector_threshold),
        finder=_thunderstorm(run, where) if detector == "thunderstorm" else None,
        threshold=threshold,
        refine=refine,
        frames=frames,
        roi=roi,
        resume=resume,
        workers=workers,
        shard=_shard(shard),
        block_frames=block_frames,
        coverage=coverage,
        channel2=channel2,
        split=split,
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
    model: str | None
    calibration: str | None
    detect: "DetectOptions | None"
    finder: "Finder | None"
    threshold: float | None
    refine: bool
    frames: tuple[int, int] | None
    roi: tuple[int, int, int, int] | None
    resume: bool
    workers: str | None
    shard: "Shard | None"
    block_frames: int | None
    coverage: bool
    channel2: str | None
    split: str | None
    setup: SetupReader
    preview: Path | None = None
    report: Path | None = None
    least_checked: int = 0  # localizations

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
        checks: dict[str, Any] = {}
        totals = {"frames": 0, "localizations": 0, "failed_frames": 0}
        quiet = replace(self, run=replace(self.run, progress="none"))
        with self.run.steps("movies") as on_step:
            for number, file in enumerate(files):
                target = output / f"{file.stem}.csv"
                try:
                    values = quiet.table([str(file)], target, running).values  # noqa: PD011
                except (SmlmError, OSError) as error:
                    bad[str(file)] = str(error)
                    warnings.warn(f"{file}: {error}", stacklevel=2)
                else:
                    found[str(target)] = int(str(values["localizations"]))
                    checks[str(target)] = values["coverage"]
                    quiet = replace(quiet, least_checked=_CHECKED_OF_MANY)
                    totals = {key: totals[key] + int(str(values[key])) for key in totals}
                on_step(number + 1, len(files))
        result: dict[str, object] = {
            **totals,
            "seconds": time.monotonic() - began,
            "coverage": _worst_check(checks),
            "tables": found,
            "failed_files": bad,
        }
        shown = {**totals, "tables": len(found), "failed files": bad}
        return Summary(result, aligned({"folder": str(output), **shown}), exit_code=1 if bad else 0)

    def table(self, frames_in: Sequence[str], output: Path, running: "Engine") -> Summary:
        """One table of one movie."""
        from smlm_bridge.cluster.engines import size_of_team
        from smlm_bridge.cluster.movie import localize_parts, merged, parts_folder
        from smlm_bridge.cluster.trust import thinned
        from smlm_bridge.io.thunderstorm import write_protocol, write_table

        began = time.monotonic()
        recipe, n_frames, movie = self._recipe(frames_in)
        made = _protocol(frames_in, recipe)
        unfinished = parts_folder(output).is_dir()
        if self.resume and output.exists() and not unfinished:
            return _done_before(output, made)
        # Outputs beside parts that are resumed are of this very run.
        run = replace(self.run, overwrite=self.run.overwrite or (self.resume and unfinished))
        run.outputs(output, output.with_suffix(".protocol.json"), self.preview, self.report)
        with run.steps("localizing") as on_step:
            store = localize_parts(
                recipe,
                parts_folder(output),
                running,
                team=size_of_team(self.workers),
                resume=self.resume,
                restart=run.overwrite,
                shard=self.shard,
                block_frames=self.block_frames,
                on_step=on_step,
            )
        if self.shard is not None:
            return _shard_done(store, n_frames, seconds=time.monotonic() - began)
        result = merged(store)
        write_table(output, result.table, overwrite=run.overwrite)
        count = len(result.table)
        sample, looked_at = thinned(result.table, n_frames)
        if self.preview is None and self.report is None:
            result = replace(
                result, table=sample
            )  # the rest is written, and the check needs memory of its own
        trusted = None
        if count >= self.least_checked:
            trusted = self._checked(recipe, sample, looked_at)
        values: dict[str, object] = {
            "frames": n_frames,
            "localizations": count,
            "failed_frames": len(result.failed),
            "failures": {frame + 1: reason for frame, reason in result.failed.items()},
            "seconds": time.monotonic() - began,
            "coverage": None if trusted is None else trusted.to_json(),
            "movie": movie,
        }
        write_protocol(output, {**made, **values}, overwrite=run.overwrite)
        self._pictures(recipe, result, made, trusted, overwrite=run.overwrite)
        store.remove()
        shown = {key: value for key, value in values.items() if key != "failures"}
        if trusted is not None:
            shown["coverage"] = trusted.headline
        return Summary(values, aligned({"table": str(output), **shown}))

    def _checked(self, recipe: "Recipe", sample: "pd.DataFrame", looked_at: int) -> "Coverage | None":
        """Whether the model is meant for these frames; said in the log, too."""
        if not self.coverage or recipe.model is None:
            return None
        from smlm_bridge.cluster.trust import checked

        found = checked(recipe, sample, looked_at=looked_at)
        if found is not None and not self.run.quiet:
            print(f"Coverage: {found.headline}. {' '.join(found.reasons)}", file=sys.stderr)
        return found

    def _recipe(self, frames_in: Sequence[str]) -> "tuple[Recipe, int, dict[str, Any]]":
        """How the movie is localized, its number of frames and what it is; what cannot work is refused here."""
        from smlm_bridge.cluster.recipe import Recipe

        recipe = Recipe(
            tuple(str(Path(name).absolute()) for name in frames_in),
            self.model,
            None,
            self.frames,
            self.roi,
            self.threshold,
            self.refine,
            _onnx_device(self.run.device_name) if self.model is not None else "cpu",
            self.run.threads,
            self.calibration,
            self.detect,
            self.finder,
            () if self.channel2 is None else (str(Path(self.channel2).absolute()),),
            self.split,
        )
        network = recipe.tool.model
        if self.detect is not None and network is not None and not network.info.box_px:
            raise UsageError(
                "--detector and --detector-threshold are for fits and models of single emitters; "
                f"'{recipe.tool.name}' finds emitters itself."
            )
        known = [channel.camera for channel in recipe.tool.calibration.channels]
        with recipe.source() as source:
            check_count(source, recipe.tool)
            cameras = cameras_of(source, [self.setup(camera).camera or camera for camera in known])
            check_movie(source, recipe.tool, cameras)
            second = cameras[1] if len(cameras) > 1 else None
            return replace(recipe, camera=cameras[0], camera2=second), source.n_frames, source.description

    def _pictures(
        self,
        recipe: "Recipe",
        result: "Localized",
        made: dict[str, Any],
        trusted: "Coverage | None",
        *,
        overwrite: bool,
    ) -> None:
        """Write the picture and the page that were asked for."""
        if self.preview is None and self.report is None:
            return
        from smlm_bridge.io.atomic import atomic_output
        from smlm_bridge.report import localization_page, preview_png

        with recipe.opened() as (source, _work):
            first = None if source.first_frame in result.failed else source.read(0, 1)[0, 0]
        known = recipe.tool.calibration
        seen: dict[str, Any] = {
            "frame_shape": (source.height, source.width),
            "pixel_nm": known.channels[0].optics.pixel_nm,
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
                coverage=trusted,
                **seen,
            )
            with atomic_output(self.report, overwrite=overwrite) as temporary:
                temporary.write_text(page, encoding="utf-8")


def _worst_check(checks: dict[str, Any]) -> dict[str, Any] | None:
    """The worst light of several tables, its flagged fraction, and each table's light."""
    done = {name: check for name, check in checks.items() if check is not None}
    if not done:
        return None
    order = ("green", "unknown", "yellow", "red")
    worst = max(
        done.values(), key=lambda check: (order.index(check["light"]), check["flagged_fraction"] or 0.0)
    )
    lights = {name: check["light"] for name, check in done.items()}
    return {"light": worst["light"], "flagged_fraction": worst["flagged_fraction"], "lights": lights}


def _detect_options(detector: str | None, threshold: str | None) -> "DetectOptions | None":
    if detector is None and threshold is None:
        return None
    from smlm_bridge.detect import DetectOptions

    # ThunderSTORM's detector is the wavelet's, in the plugin.
    own = "wavelet" if detector == "thunderstorm" else detector
    given: dict[str, Any] = {"detector": own, "threshold": threshold}
    return DetectOptions(**{name: value for name, value in given.items() if value is not None})


def _thunderstorm(run: Run, where: Where) -> "Finder | None":
    """ThunderSTORM's own detector; without the plugin None for ours of the same algorithm, which is said."""
    from smlm_bridge.bridge.engines import Engine
    from smlm_bridge.bridge.finder import thunderstorm_finder

    found = thunderstorm_finder(where.options)
    if found is None and not run.quiet:
        print(f"Warning: {Engine().note}", file=sys.stderr)
    return found


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
    keys = ("frames", "localizations", "failed_frames", "failures", "seconds", "coverage", "movie")
    values = {key: known.get(key) for key in keys}
    return Summary(values, f"{output} is complete already; nothing was done.")


def _onnx_device(name: str) -> str:
    """Answer ``auto`` by what ONNX Runtime has, without torch."""
    if name != "auto":
        return name
    import onnxruntime

    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def _protocol(frames_in: Sequence[str], recipe: "Recipe") -> dict[str, Any]:
    """How the table was made; maps of the camera by their mean."""
    from dataclasses import asdict

    import numpy as np

    tool = recipe.tool
    camera = recipe.camera or tool.calibration.channels[0].camera
    least = tool.model.info.threshold if tool.model is not None else None
    numbers = {
        name: float(np.mean(getattr(camera, name))) for name in ("offset", "e_per_adu", "read_noise_e")
    }
    return {
        "made_by": f"smlm_bridge {__version__}, localize",
        "input": list(frames_in),
        "model": None if tool.model is None else tool.name,
        "calibration": tool.name if tool.model is None else None,
        "calibration_hash": tool.calibration.hash,
        "pixel_nm": tool.calibration.channels[0].optics.pixel_nm,
        "camera": {**numbers, "em_gain": camera.em_gain, "quantum_efficiency": camera.quantum_efficiency},
        "options": {
            "threshold": recipe.threshold or least,
            "detect": None if recipe.detect is None else json.loads(json.dumps(asdict(recipe.detect))),
            "finder": None if recipe.finder is None else str(recipe.finder),
            "refine": recipe.refine,
            "frames": None if recipe.frames is None else list(recipe.frames),
            "roi": None if recipe.roi is None else list(recipe.roi),
            "channel2": list(recipe.channel2) or None,
            "split": recipe.split,
        },
    }
