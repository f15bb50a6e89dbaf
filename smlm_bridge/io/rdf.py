"""The description of a model package: ``rdf.yaml`` in the words of bioimage.io that DeepImageJ reads.

bioimage.io's format 0.5 allows more than the reader of DeepImageJ 3 (JDLL) understands; what stands here is
what both do: one input, axes only of batch, channel and space, documentation and covers as plain text, an id.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected
from smlm_bridge.model import ModelInfo
from smlm_bridge.networks.maps import MAP_NAMES

FORMAT_VERSION: Final = "0.5.7"
PACKAGE_KEY: Final = "smlm_bridge.package"
_PACKAGE_VERSION = 1
_TOLERANCE: Final = 1e-3
_LEAST_STEPS: Final = 4  # of an input beyond its halos
_TRUTH_VALUES: Final = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_DOI: Final = "10.1038/s41592-021-01236-x"


def halo_px(info: ModelInfo) -> int:
    """Pixels at each edge of a tile that its neighbour answers for: the reach, on the network's own grid."""
    return -(-info.reach_px // info.size_step) * info.size_step


def least_size_px(info: ModelInfo) -> int:
    """The smallest input: some grid steps between two halos."""
    return 2 * halo_px(info) + _LEAST_STEPS * info.size_step


def photons_from_counts(camera: Camera) -> tuple[float, float]:
    """Gain and offset of ``photons = gain * counts + offset``.

    Raises
    ------
    InputRejected
        If the camera has maps: the format knows one number for all pixels.
    """
    if not isinstance(camera.offset, float | int) or not isinstance(camera.e_per_adu, float | int):
        raise InputRejected(
            "the camera's offset or e_per_adu is a map, and a package for DeepImageJ holds one number for all "
            "pixels. Give --offset and --e-per-adu as numbers (the maps' medians), or localize with Python."
        )
    gain = float(camera.e_per_adu) / camera.em_gain
    return gain, 0.0 - float(camera.offset) * gain


def package_settings(info: ModelInfo, camera: Camera) -> dict[str, Any]:
    """What a program needs beside the graph to make a table of counts; no more than numbers and names."""
    gain, offset = photons_from_counts(camera)
    optics = info.calibration.optics
    field: dict[str, Any] = {}
    if optics.field_scale != 1:
        field = {"field_scale": optics.field_scale, "field_centre_nm": list(optics.field_centre_nm)}
    return {
        "format": "smlm_bridge package",
        "version": _PACKAGE_VERSION,
        "name": info.name,
        "pixel_nm": optics.pixel_nm,
        **field,
        "z_range_nm": list(info.calibration.z_range_nm),
        "gain": gain,
        "offset": offset,
        "threshold": info.threshold,
        "channels": info.channels,
        "size_step": info.size_step,
        "reach_px": info.reach_px,
        "maps": list(MAP_NAMES),
    }


def describe(
    info: ModelInfo,
    camera: Camera,
    *,
    authors: Sequence[str],
    licence: str,
    hashes: Mapping[str, str],
    opset: int,
    timestamp: str,
) -> dict[str, Any]:
    """The content of ``rdf.yaml``.

    Parameters
    ----------
    info
        The model.
    camera
        Of the movies it will be run on.
    authors, licence
        Names, and an SPDX identifier.
    hashes
        SHA-256 of the files, by name.
    opset
        Of the weights.
    timestamp
        ISO 8601.
    """
    gain, offset = photons_from_counts(camera)

    def file(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashes[name]}

    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "id": identifier(info.name),
        "name": _name(info.name),
        "description": f"3-D single-molecule localization: {info.purpose}"[:1024],
        "version": "1.0.0",
        "timestamp": timestamp,
        "authors": [{"name": author} for author in authors],
        "maintainers": [],
        "cite": [{"text": "Speiser et al. 2021: one probability and one Gaussian a pixel", "doi": _DOI}],
        "license": licence,
        "tags": ["smlm", "localization", "super-resolution", "3d", "fluorescence-light-microscopy"],
        "links": ["deepimagej/deepimagej"],
        "documentation": "README.md",
        "covers": ["cover.png"],
        "inputs": [
            {
                "id": "frames",
                "description": "Raw camera counts, one frame at a time; frames of a stack go into the batch.",
                "axes": [{"type": "batch"}, _channels("channel", info.channels), *_input_space(info)],
                "test_tensor": file("test_input.npy"),
                "sample_tensor": file("sample_input.tif"),
                "data": {"type": "float32"},
                "preprocessing": [{"id": "scale_linear", "kwargs": {"gain": gain, "offset": offset}}],
            }
        ],
        "outputs": [
            {
                "id": "maps",
                "description": "Per pixel: probability, offsets, z, photons, their sigmas and background.",
                "axes": [{"type": "batch"}, _channels(MAP_NAMES), *_output_space(info)],
                "test_tensor": file("test_output.npy"),
                "sample_tensor": file("sample_output.tif"),
                "data": {"type": "float32"},
            }
        ],
        "weights": {"onnx": {**file("weights.onnx"), "opset_version": opset}},
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [
                    {"relative_tolerance": _TOLERANCE, "absolute_tolerance": _TOLERANCE}
                ]
            },
            "deepimagej": {"allow_tiling": True},
            "smlm_bridge": package_settings(info, camera),
        },
    }


def identifier(name: str) -> str:
    """A name as an id and as a folder: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def to_yaml(value: Any, *, indent: int = 0) -> str:
    """Block YAML of mappings, lists, texts, numbers and truth values; every text is in double quotes."""
    if isinstance(value, Mapping) and value:
        return "".join(
            f"{' ' * indent}{_key(key)}:{_nested(item, indent=indent + 2)}" for key, item in value.items()
        )
    if isinstance(value, list | tuple) and value:
        return "".join(f"{' ' * indent}-{_item(item, indent=indent + 2)}" for item in value)
    return f"{' ' * indent}{_scalar(value)}\n"


def _key(key: str) -> str:
    """Plain words as they are; what YAML 1.1 takes for a truth value or a number in quotes."""
    plain = re.fullmatch("[a-z_]+", key) and key not in _TRUTH_VALUES
    return key if plain else _scalar(key)


def _nested(value: Any, *, indent: int) -> str:
    if isinstance(value, Mapping | list | tuple) and value:
        return "\n" + to_yaml(value, indent=indent)
    return f" {_scalar(value)}\n"


def _item(value: Any, *, indent: int) -> str:
    """A member of a list: its first line stands behind the dash."""
    return " " + to_yaml(value, indent=indent).removeprefix(" " * indent)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return f'"{"".join(map(_character, value))}"'
    text = json.dumps(value, allow_nan=False)
    # YAML 1.1 takes 1e-05 for a text: a float needs its point.
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _character(character: str) -> str:
    """One character inside double quotes; what is not plain ASCII by its number."""
    if character in '"\\':
        return "\\" + character
    return character if " " <= character <= "~" else f"\\U{ord(character):08X}"


def _name(name: str) -> str:
    """A name with the characters that bioimage.io allows."""
    return re.sub(r"[^\w\s\-+()./]", " ", name).strip()[:128] or "model"


def _channels(names: Sequence[str] | str, count: int = 0) -> dict[str, Any]:
    listed = [f"{names}{i}" for i in range(count)] if isinstance(names, str) else list(names)
    return {"type": "channel", "channel_names": listed}


def _input_space(info: ModelInfo) -> list[dict[str, Any]]:
    size = {"min": least_size_px(info), "step": info.size_step}
    return [{"type": "space", "id": axis, "size": size} for axis in "yx"]


def _output_space(info: ModelInfo) -> list[dict[str, Any]]:
    return [
        {
            "type": "space",
            "id": axis,
            "size": {"tensor_id": "frames", "axis_id": axis},
            "halo": halo_px(info),
        }
        for axis in "yx"
    ]
