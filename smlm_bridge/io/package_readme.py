"""The documentation inside a model package."""

import json
from typing import Final

from smlm_bridge.camera import Camera
from smlm_bridge.io.rdf import halo_px, identifier, least_size_px, photons_from_counts
from smlm_bridge.model import ModelInfo
from smlm_bridge.networks.maps import MAP_NAMES

_MEANING: Final = {
    "probability": "of an emitter in this pixel, 0 to 1",
    "dx_nm": "x of the emitter minus x of the pixel's centre, nm",
    "dy_nm": "y likewise, nm",
    "z_nm": "height above the coverslip, nm",
    "photons": "detected photo-electrons",
    "sigma_x_nm": "standard deviation of x, nm",
    "sigma_y_nm": "of y, nm",
    "sigma_z_nm": "of z, nm",
    "sigma_photons": "of the photons",
    "background": "photo-electrons per pixel",
}


def readme(info: ModelInfo, camera: Camera, *, decoder: bool) -> str:
    """Markdown: what the model is for, its input and output, how to get a table, its limits and its scores."""
    gain, offset = photons_from_counts(camera)
    known = info.calibration
    rows = [f"| {i + 1} | {name} | {_MEANING[name]} |" for i, name in enumerate(MAP_NAMES)]
    return "\n".join(
        [
            f"# {info.name}",
            "",
            f"{info.purpose}",
            "",
            f"Pixel {known.optics.pixel_nm:g} nm, z {known.z_range_nm[0]:g} to {known.z_range_nm[1]:g} nm, "
            f"emission {known.optics.wavelength_nm:g} nm, NA {known.optics.numerical_aperture:g}.",
            "",
            "## Input",
            "",
            f"Raw camera counts, {info.channels} channel(s), one frame at a time. photo-electrons = "
            f"{gain:g} * counts + {offset:g} is done by the preprocessing of this package: it is right for a "
            f"camera with offset {float(camera.offset):g} ADU, {float(camera.e_per_adu):g} electrons per ADU and "
            f"EM gain {camera.em_gain:g}. For another camera export again with its --offset and --e-per-adu.",
            "",
            f"Height and width are multiples of {info.size_step}, at least {least_size_px(info)}; a tile's outer "
            f"{halo_px(info)} pixels belong to its neighbour (the network sees {info.reach_px}).",
            "",
            "## Output",
            "",
            "| channel | name | per pixel |",
            "|---|---|---|",
            *rows,
            "",
            "## From the maps to a table",
            "",
            *_to_a_table(info, decoder),
            "",
            "## Limits",
            "",
            "DeepImageJ keeps all maps of all frames in memory (40 bytes a pixel and frame): cut long movies "
            "into parts. It pads small or odd frames by mirroring, so values within the halo of the border "
            "differ a little from those of Python. A camera with maps of offset or gain (sCMOS) needs Python.",
            "",
            "## Validation",
            "",
            "Scores on simulated frames drawn from the training ranges:",
            "",
            *[f"- {key}: {json.dumps(value)}" for key, value in info.scores.items()],
            "",
            "Training ranges (nm, photo-electrons):",
            "",
            *[f"- {key}: {json.dumps(value)}" for key, value in info.ranges.items()],
            "",
            "Do not trust it outside of these ranges.",
            "",
        ]
    )


def _to_a_table(info: ModelInfo, decoder: bool) -> list[str]:
    image = ""
    if info.calibration.optics.field_scale != 1:
        image = " Its positions are those in the image, without the model's field scale."
    lines = [
        f"- Without DeepImageJ, whole movies in bounded memory: *Plugins > SMLM Bridge > Localize without "
        f"Python* with the folder `{identifier(info.name)}` or this archive as the model.",
        "- With DeepImageJ: run the model on the stack, then *Plugins > SMLM Bridge > Decode maps to "
        f"ThunderSTORM* on its output, pixel {info.calibration.optics.pixel_nm:g} nm, threshold "
        f"{info.threshold:g}.{image}",
    ]
    if decoder:
        lines.append(
            "- The same script is in this archive; drop it on Fiji and press Run where the menu is missing."
        )
    return lines
