"""``export``: a model as a package for other programs."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smlm_bridge.cli.common import Run, SetupReader, output_option, required, setup_options, verb
from smlm_bridge.cli.reporting import Summary, aligned
from smlm_bridge.errors import InputRejected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from smlm_bridge.calibration import Calibration
    from smlm_bridge.camera import Camera
    from smlm_bridge.model import Model

SAMPLE_PX = 128
SEED = 1


@verb(
    "export",
    units="counts in ADU, photons in photo-electrons, lengths in nm.",
    example="smlm-bridge export tetrapod_telomere --deepimagej -o telomere.zip --offset 100 --e-per-adu 0.45",
)
@click.argument("model", metavar="MODEL")
@output_option("The package, .zip.")
@click.option("--deepimagej", is_flag=True, help="A bioimage.io package that DeepImageJ 3 runs.")
@click.option(
    "--sample",
    metavar="FRAMES",
    help="Frames of the camera whose first becomes the test input and the cover; absent: the sample beside the "
    "model, or a simulated frame.",
)
@click.option("--author", "authors", multiple=True, metavar="NAME", help="Author of the model; repeatable.")
@click.option(
    "--license",
    "licence",
    default="BSD-3-Clause",
    show_default=True,
    help="SPDX name of the weights' licence.",
)
@setup_options(optics=False)
def command(
    run: Run,
    model: str,
    *,
    output: Path,
    deepimagej: bool,
    sample: str | None,
    authors: tuple[str, ...],
    licence: str,
    setup: SetupReader,
) -> Summary:
    """Write MODEL (.onnx or the name of a shipped one) as a package for other programs.

    The package takes raw counts: the camera's offset and gain are part of it. Give the camera of the movies it
    will be run on; without one it is the calibration's. The archive is read back and run before it is kept;
    a model of more than 10 MB is refused.
    """
    required(deepimagej or None, "say what for: --deepimagej is the one format there is.")
    run.outputs(output)
    from smlm_bridge.io.deepimagej import (
        NotForDeepImageJ,
        PackageOptions,
        decoder_script,
        sample_frame,
        write_package,
    )
    from smlm_bridge.io.model import load_model
    from smlm_bridge.io.rdf import photons_from_counts

    network = load_model(model, threads=run.threads)
    if network.info.box_px:
        raise NotForDeepImageJ(
            f"'{model}' is a network of single emitters: it returns numbers, and DeepImageJ shows images only. "
            "Run it with 'smlm-bridge localize'."
        )
    camera = setup(network.info.calibration.camera).camera or network.info.calibration.camera
    photons_from_counts(camera)
    counts = _sample(model, network, camera, sample)
    test_input = sample_frame(counts, network.info)
    options = PackageOptions(
        authors=authors or ("smlm_bridge user",),
        licence=licence,
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        decoder=decoder_script(),
    )
    exported = write_package(
        output,
        model,
        camera=camera,
        test_input=test_input,
        cover=_cover(network, test_input, camera),
        options=options,
        overwrite=run.overwrite,
    )
    import onnxruntime

    values = {
        "opset": exported.opset,
        "tested": True,
        "tested_with": f"onnxruntime {onnxruntime.__version__}",
        "difference": exported.difference,
        "size_bytes": exported.size_bytes,
    }
    return Summary(values, aligned({"package": str(output), "camera": _named(camera), **values}))


def _named(camera: "Camera") -> str:
    return f"offset {camera.offset:g} ADU, {camera.e_per_adu:g} e/ADU, EM gain {camera.em_gain:g}"


def _sample(model: str, network: "Model", camera: "Camera", given: str | None) -> "NDArray[np.generic]":
    """A frame (C, H, W) in counts of ``camera``."""
    from smlm_bridge.io.images import open_frames
    from smlm_bridge.io.model import find_model

    counts: NDArray[np.generic]
    if given is not None:
        counts = open_frames([given]).read(0, 1)[0]
        return counts
    known = network.info.calibration
    beside = find_model(model).with_name("sample.tif")
    if beside.is_file():
        counts = open_frames([beside]).read(0, 1)[0]
    elif network.info.channels == 1:
        counts = _simulated(network.info.one_channel, network.info.ranges)
    else:
        raise InputRejected("a model of several channels needs --sample with frames of its camera.")
    return camera.expected(known.camera.to_photons(counts))


def _simulated(known: "Calibration", ranges: Any) -> "NDArray[np.floating[Any]]":
    """One frame (1, H, W) from the training ranges, in counts of the calibration's camera."""
    from smlm_bridge._optional import require

    torch = require("torch", extra="train")
    from smlm_bridge.simulate.render import record, render
    from smlm_bridge.simulate.scene import Ranges, draw

    generator = torch.Generator("cpu").manual_seed(SEED)
    scene = draw(
        Ranges.from_json(ranges),
        generator,
        frames=1,
        shape=(SAMPLE_PX, SAMPLE_PX),
        pixel_nm=known.optics.pixel_nm,
    )
    counts: NDArray[np.floating[Any]] = record(
        scene, render(scene, known.psf(device="cpu")), known.camera, generator
    ).numpy()
    return counts


def _cover(network: "Model", test_input: "NDArray[np.float32]", camera: "Camera") -> bytes:
    from smlm_bridge.localize import LocalizeOptions, localize_frames
    from smlm_bridge.report.model_cover import model_cover_png

    known = network.info.calibration
    found = localize_frames(test_input, network, camera=camera, options=LocalizeOptions())
    return model_cover_png(
        test_input[0, 0], found, pixel_nm=known.optics.pixel_nm, z_range_nm=known.z_range_nm
    )
