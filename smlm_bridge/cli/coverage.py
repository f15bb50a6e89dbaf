"""``coverage``: is this model meant for these data?"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import PATH, Run, SetupReader, file_option, required, setup_options, verb
from smlm_bridge.cli.movies import cameras_of, channel_options, check_channels, check_count, check_movie
from smlm_bridge.cli.reporting import Summary
from smlm_bridge.cli.values import FRAMES, ROI
from smlm_bridge.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from smlm_bridge.alarm import CrlbAlarm
    from smlm_bridge.camera import Camera
    from smlm_bridge.model import ModelInfo

DEFAULT_SEED = 0


@verb(
    "coverage",
    units="heights in nm, photons and background in photo-electrons.",
    example="smlm-bridge coverage movie.tif --model tetrapod_storm --report coverage.html --json",
)
@click.argument("frames_in", metavar="FRAMES...", nargs=-1, required=True)
@click.option("--model", metavar="MODEL", help="A model file (.onnx) or the name of a shipped one.")
@click.option("--threshold", type=float, help="Least probability, 0 to 1; absent: the model's.")
@click.option("--frames", type=FRAMES, help="First and last frame, from 1, both included.")
@click.option("--roi", type=ROI, help="Region in pixels: column, row, width, height.")
@click.option(
    "--boxes",
    type=click.IntRange(min=10),
    default=300,
    show_default=True,
    help="Emitters that are looked at, about.",
)
@click.option(
    "--truth",
    type=PATH,
    help="The emitters, where they are known: then errors are held against the bound, too.",
)
@channel_options
@file_option("--report", "A self-contained page with the twelve worst boxes, .html.")
@setup_options(optics=False)
def command(
    run: Run,
    frames_in: tuple[str, ...],
    *,
    model: str | None,
    threshold: float | None,
    frames: tuple[int, int] | None,
    roi: tuple[int, int, int, int] | None,
    boxes: int,
    truth: Path | None,
    channel2: str | None,
    split: str | None,
    report: Path | None,
    setup: SetupReader,
) -> Summary:
    """Say whether MODEL was trained for data like FRAMES, before they are localized.

    Some frames, spread over the movie, are localized. The predictions of a sample of emitters are rendered again
    with the model's PSF and compared with the data, with the training ranges, and with what the network saw in
    training. green: up to 5 % of the boxes are flagged; yellow: up to 20 %, or something about the whole table;
    red: more; unknown: too little to judge. With --truth the errors are compared with the Cramér-Rao bound in
    cells of photons, height and background: below it, gain or units are wrong, or the model knows these frames.

    Of a model of two channels both are rendered again, each with its own PSF; the gallery shows the first.
    """
    required(model, "give --model MODEL: a .onnx file or a name that 'smlm-bridge models' lists.")
    check_channels(channel2, split)
    run.outputs(report)
    from smlm_bridge.cluster.recipe import Recipe, absolute_model
    from smlm_bridge.cluster.trust import misfits
    from smlm_bridge.coverage import CoverageOptions, check_localized, localized_sample

    inputs = tuple(str(Path(name).absolute()) for name in frames_in)
    second = () if channel2 is None else (str(Path(channel2).absolute()),)
    recipe = Recipe(
        inputs,
        absolute_model(str(model)),
        None,
        frames,
        roi,
        threshold,
        threads=run.threads,
        channel2=second,
        split=split,
    )
    network = recipe.tool.model
    assert network is not None
    if truth is not None and network.info.channels > 1:
        raise UsageError("--truth holds errors against the bound of one channel; leave it out for a pair.")
    known = [channel.camera for channel in network.info.calibration.channels]
    seed = DEFAULT_SEED if run.given_seed is None else run.given_seed
    with recipe.source() as source:
        check_count(source, recipe.tool)
        cameras = cameras_of(source, [setup(camera).camera or camera for camera in known])
        check_movie(source, recipe.tool, cameras)
        recipe = replace(recipe, camera=cameras[0], camera2=cameras[1] if len(cameras) > 1 else None)
        with run.steps("checking") as on_step:
            options = CoverageOptions(boxes=boxes)
            table, looked = localized_sample(
                source, recipe.work(), options=options, seed=seed, on_step=on_step
            )
        found = check_localized(
            source,
            table,
            network,
            camera=recipe.cameras,
            options=options,
            seed=seed,
            stops=misfits(network.info, pixel_nm=source.pixel_nm, em_gain=cameras[0].em_gain),
            looked_at=looked,
            corner_nm=recipe.corner_nm,
        )
    alarm = None if truth is None else _alarm(table, truth, network.info, cameras[0])
    values: dict[str, Any] = {**found.to_json(), "model": network.info.name, "seed": seed}
    if alarm is not None:
        values["crlb_alarm"] = alarm.to_json()
    if report is not None:
        from smlm_bridge.io.atomic import atomic_output
        from smlm_bridge.report.coverage import coverage_page

        title = f"Coverage of {', '.join(Path(name).name for name in frames_in)}"
        page = coverage_page(found, title=title, provenance={"model": network.info.name, "seed": seed})
        with atomic_output(report, overwrite=run.overwrite) as temporary:
            temporary.write_text(page, encoding="utf-8")
    texts = [] if alarm is None else alarm.messages or ("No parameter lies below the Cramér-Rao bound.",)
    return Summary(values, "\n".join([found.headline, *found.reasons, *texts]))


def _alarm(table: "pd.DataFrame", truth: Path, info: "ModelInfo", camera: "Camera") -> "CrlbAlarm":
    """Errors of the localized frames against the bound."""
    from smlm_bridge._optional import require
    from smlm_bridge.io.thunderstorm import read_table

    require("torch", extra="train")
    from smlm_bridge.coverage.truth import truth_alarm

    emitters = read_table(truth, pixel_nm=info.calibration.optics.pixel_nm)
    return truth_alarm(table, emitters, info, camera=camera)
