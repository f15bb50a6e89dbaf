"""``camera``: offset, gain and read noise from movies."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from smlm_bridge.cli.common import PATH, Run, output_option, verb
from smlm_bridge.cli.reporting import OnStep, Summary, aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_VALUES = 8_000_000
KEYS = ("offset", "e_per_adu", "read_noise_e")


@verb(
    "camera",
    units="counts (ADU); read noise in electrons.",
    example="smlm-bridge camera dark.tif --flat flat1.tif --flat flat2.tif -o camera.toml",
)
@click.argument("dark", metavar="DARK", type=PATH)
@output_option("The setup, .toml; maps lie beside it as TIFF.")
@click.option("--flat", "flats", multiple=True, type=PATH, metavar="FILE",
              help="Movie of even light; better several levels. Absent: DARK is any movie.")  # fmt: skip
@click.option("--offset", type=float, help="Counts without light, for a movie alone.")
@click.option("--em-gain", type=float, default=1.0, show_default=True, help="Above 1 means EMCCD.")
@click.option("--quantum-efficiency", type=float, default=1.0, show_default=True, help="Recorded only.")
def command(
    run: Run,
    dark: Path,
    *,
    output: Path,
    flats: tuple[Path, ...],
    offset: float | None,
    em_gain: float,
    quantum_efficiency: float,
) -> Summary:
    """Estimate the camera from DARK, a movie without light, and movies of even light (--flat).

    Without --flat the gain comes from the noise of one movie with bright and dim places. Values that differ from
    pixel to pixel are written as maps. Hundreds of raw frames each; the region and settings of the measurement.
    """
    from smlm_bridge.camera_calibration import moments, photon_transfer, single_movie
    from smlm_bridge.errors import UsageError

    if flats and offset is not None:
        raise UsageError("--offset is for a movie alone; with --flat it is measured in the dark movie.")
    names = {key: output.with_name(f"{output.stem}.{key}.tif") for key in KEYS}
    run.outputs(output, *names.values())
    given: dict[str, Any] = {"em_gain": em_gain, "quantum_efficiency": quantum_efficiency}
    with run.steps("reading movies") as on_step:
        if flats:
            measured = [moments(_blocks(path, on_step), name=str(path)) for path in (dark, *flats)]
            estimate = photon_transfer(measured[0], measured[1:], **given)
        else:
            estimate = single_movie(_blocks(dark, on_step), offset=offset, **given)
    values = {key: getattr(estimate.camera, key) for key in KEYS}
    maps = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    _write(run, output, values, {key: names[key] for key in maps}, given)
    summary: dict[str, object] = {key: float(np.median(value)) for key, value in values.items()}
    summary |= {"em_gain": em_gain, "maps": [str(names[key]) for key in maps], "notes": list(estimate.notes)}
    shown = {key: value for key, value in summary.items() if key != "notes"}
    text = "\n".join([aligned({"setup": str(output), **shown}), *estimate.notes])
    return Summary(summary, text)


def _blocks(path: Path, on_step: OnStep) -> "Iterator[NDArray[Any]]":
    from smlm_bridge.errors import InputRejected
    from smlm_bridge.io.images import open_frames

    with open_frames(path) as source:
        if source.n_channels > 1:
            raise InputRejected(f"{path} has {source.n_channels} channels; a camera's movie has one.")
        # An even number, so that pairs of frames are not cut.
        step = max(2, BLOCK_VALUES // (source.height * source.width) // 2 * 2)
        for start in range(0, source.n_frames, step):
            stop = min(source.n_frames, start + step)
            yield source.read(start, stop)[:, 0]
            on_step(stop, source.n_frames)


def _write(
    run: Run, output: Path, values: dict[str, Any], maps: dict[str, Path], further: dict[str, float]
) -> None:
    from smlm_bridge.io.atomic import atomic_output
    from smlm_bridge.io.images import write_stack

    for key, path in maps.items():
        write_stack(path, values[key].astype(np.float32), axes="YX", overwrite=run.overwrite)
    lines = ["[camera]"]
    for key, value in values.items():
        lines.append(f'{key} = "{maps[key].name}"' if key in maps else f"{key} = {float(value)!r}")
    lines += [f"{key} = {value!r}" for key, value in further.items()]
    with atomic_output(output, overwrite=run.overwrite) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
