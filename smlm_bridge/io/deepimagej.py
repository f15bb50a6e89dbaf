"""Write a model as a bioimage.io package that DeepImageJ runs, and check what was written."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import tifffile
from numpy.typing import NDArray

import smlm_bridge
from smlm_bridge.camera import Camera
from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.model import find_model, load_model
from smlm_bridge.io.onnx_file import MAX_IR_VERSION, MAX_OPSET, inspect_onnx, with_metadata
from smlm_bridge.io.package_readme import readme
from smlm_bridge.io.rdf import (
    PACKAGE_KEY,
    describe,
    least_size_px,
    package_settings,
    photons_from_counts,
    to_yaml,
)
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.pair import PairCalibration, with_cameras

_EPOCH = (1980, 1, 1, 0, 0, 0)  # in the archive, so that the same model gives the same bytes
_TOLERANCE = 1e-4
_LARGEST_PACKAGE: Final = 10_000_000
_LARGEST_UNPACKED: Final = 512_000_000
DECODER: Final = "Decode_maps_to_ThunderSTORM.groovy"


class NotForDeepImageJ(InputRejected):
    """The model is a good one, but not one that DeepImageJ could run."""


@dataclass(frozen=True)
class PackageOptions:
    """What a package says beside the model.

    Parameters
    ----------
    authors, licence
        Names, and an SPDX identifier of the weights' licence.
    timestamp
        ISO 8601.
    decoder
        Text of the Groovy script that turns maps into a table; None leaves it out.
    """

    authors: Sequence[str]
    licence: str
    timestamp: str
    decoder: str | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    opset
        Of the ONNX operators.
    size_bytes
        Of the archive.
    difference
        Largest difference between the test output and a run of the archive's own weights, relative to the
        spread of each map.
    """

    opset: int
    size_bytes: int
    difference: float


def decoder_script() -> str | None:
    """The Groovy script that turns maps into a table; None where this installation has no Fiji scripts."""
    package = Path(smlm_bridge.__file__).parent
    for folder in (package / "fiji_scripts", package.parent / "fiji_scripts"):
        script = folder / "scripts" / "Plugins" / "SMLM Bridge" / DECODER
        if script.is_file():
            return script.read_text(encoding="utf-8")
    return None


def sample_frame(counts: NDArray[np.generic], info: ModelInfo) -> NDArray[np.float32]:
    """A frame (C, H, W) of counts as the test input (1, C, h, w): sides are allowed sizes.

    Raises
    ------
    InputRejected
        If the model looks at neighbouring frames, or the frame has other channels than the model, or fewer
        pixels than half of the least size, or the channels do not lie on each other.
    """
    if info.volume is not None:
        raise NotForDeepImageJ(
            f"the model '{info.name}' returns volumes, which the package does not describe. Run it with "
            "'smlm-bridge localize'."
        )
    if info.context_frames:
        raise NotForDeepImageJ(
            f"the model '{info.name}' looks at neighbouring frames; DeepImageJ gives it one frame at a time. "
            "Run it with 'smlm-bridge localize'."
        )
    if counts.ndim != 3 or counts.shape[0] != info.channels:
        raise InputRejected(
            f"the sample has the shape {counts.shape}; the model '{info.name}' takes {info.channels} channel(s)."
        )
    check_channels(info, (counts.shape[1], counts.shape[2]))
    frame = np.asarray(counts, np.float32)
    least = least_size_px(info)
    missing = [max(0, least - side) for side in frame.shape[1:]]
    if any(more >= side for more, side in zip(missing, frame.shape[1:], strict=True)):
        raise InputRejected(
            f"the sample is {frame.shape[1:]} pixels; give frames of {least} x {least} or more (--sample)."
        )
    frame = np.pad(frame, ((0, 0), (0, missing[0]), (0, missing[1])), mode="reflect")
    height, width = (side // info.size_step * info.size_step for side in frame.shape[1:])
    return frame[None, :, :height, :width]


def check_channels(info: ModelInfo, shape: tuple[int, int]) -> None:
    """Refuse a model of two channels that do not lie on each other or have two cameras: DeepImageJ knows neither.

    Raises
    ------
    InputRejected
        If so, within frames of that shape.
    """
    known = info.calibration
    if not isinstance(known, PairCalibration):
        return
    if not known.resampling(shape).moves_nothing:
        raise NotForDeepImageJ(
            f"channel 2 of the model '{info.name}' does not lie on channel 1, and DeepImageJ gives frames as they "
            "are. Run it with 'smlm-bridge localize'."
        )
    if len({photons_from_counts(channel.camera) for channel in known.channels}) > 1:
        raise NotForDeepImageJ(
            f"the channels of the model '{info.name}' have different cameras, and a package for DeepImageJ holds "
            "one offset and one gain. Run it with 'smlm-bridge localize'."
        )


def run_on_counts(model: Model, counts: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """Maps of counts (B, C, H, W), by the two numbers that stand in the package."""
    gain, offset = photons_from_counts(camera)
    return model.run(np.float32(gain) * counts + np.float32(offset))


def write_package(
    target: Path | str,
    model: Path | str,
    *,
    camera: Camera,
    test_input: NDArray[np.float32],
    cover: bytes,
    options: PackageOptions,
    overwrite: bool = False,
) -> Exported:
    """Write ``target`` (.zip) and check it by reading it back.

    Parameters
    ----------
    target
        The archive.
    model
        A model file or the name of a shipped one.
    camera
        Of the movies the package will be run on; becomes part of it.
    test_input : (1, C, H, W)
        Counts, from ``sample_frame``.
    cover
        A PNG.
    options
        Authors, licence, time.

    Raises
    ------
    InputRejected
        If the name does not end in .zip, the model is not ours, is newer than DeepImageJ's engine reads or too
        large, or the camera has maps.
    SmlmError
        If what was written does not give the test output.
    """
    if Path(target).suffix != ".zip":
        raise InputRejected(f"a package ends in .zip, got {target}.")
    loaded = load_model(model)
    known = loaded.info.calibration
    info = replace(loaded.info, calibration=with_cameras(known, [camera] * len(known.channels)))
    settings = {PACKAGE_KEY: json.dumps(package_settings(info, camera))}
    weights = with_metadata(find_model(model).read_bytes(), {**info.to_metadata(), **settings})
    opset = _check_engine(weights, info.name)
    maps = run_on_counts(loaded, test_input, camera)
    files = {
        "weights.onnx": weights,
        "test_input.npy": _npy(test_input),
        "test_output.npy": _npy(maps),
        "sample_input.tif": _tiff(test_input),
        "sample_output.tif": _tiff(maps),
        "cover.png": cover,
        "README.md": readme(info, camera, decoder=options.decoder is not None).encode(),
    }
    if options.decoder is not None:
        files[DECODER] = options.decoder.encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    description = describe(
        info,
        camera,
        authors=options.authors,
        licence=options.licence,
        hashes=hashes,
        opset=opset,
        timestamp=options.timestamp,
    )
    if options.decoder is not None:
        description["attachments"] = [{"source": DECODER, "sha256": hashes[DECODER]}]
    with atomic_output(target, overwrite=overwrite) as temporary:
        _write_zip(temporary, {"rdf.yaml": to_yaml(description).encode(), **files})
        size = temporary.stat().st_size
        if size > _LARGEST_PACKAGE:
            raise NotForDeepImageJ(
                f"the package would have {size / 1e6:.1f} MB; at most {_LARGEST_PACKAGE / 1e6:.0f} MB are "
                "shared easily. Give a smaller --sample, or train a smaller network."
            )
        difference = check_package(temporary)
    return Exported(opset, size, difference)


def check_package(path: Path | str) -> float:
    """Run the weights of a package on its test input and compare with its test output.

    Returns
    -------
    float
        Largest difference, relative to the spread of each map.

    Raises
    ------
    InputRejected
        If it is no such package, is damaged, or unpacks to over 512 MB.
    SmlmError
        If the difference exceeds 1e-4.
    """
    try:
        difference = _difference(Path(path))
    except (SmlmError, MemoryError):
        raise
    except Exception as error:  # the archive, the arrays and the runtime raise each their own
        raise InputRejected(f"package {path} is damaged or not one of ours: {error}.") from error
    if not difference <= _TOLERANCE:
        raise SmlmError(
            f"the package does not give its own test output: {difference:.2g} of a map's spread, at most "
            f"{_TOLERANCE:g} are allowed. Run 'smlm-bridge doctor' and report this."
        )
    return difference


def _difference(path: Path) -> float:
    """Between the maps that the weights give and those in the package."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _LARGEST_UNPACKED:
            raise InputRejected(f"package {path} unpacks to over 512 MB, no package of ours does.")
        weights = archive.read("weights.onnx")
        counts, wanted = (
            np.load(io.BytesIO(archive.read(f"test_{end}.npy")), allow_pickle=False)
            for end in ("input", "output")
        )
    inspect_onnx(weights, name=str(path))
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    settings = json.loads(session.get_modelmeta().custom_metadata_map[PACKAGE_KEY])
    photons = np.float32(settings["gain"]) * counts + np.float32(settings["offset"])
    maps = session.run(["maps"], {"frames": photons})[0]
    spread = np.maximum(np.ptp(wanted, axis=(0, 2, 3)), 1e-3)
    return float(np.max(np.abs(maps - wanted).max(axis=(0, 2, 3)) / spread))


def _check_engine(weights: bytes, name: str) -> int:
    facts = inspect_onnx(weights, name=name)
    if facts.opset > MAX_OPSET or facts.ir_version > MAX_IR_VERSION:
        raise InputRejected(
            f"'{name}' has opset {facts.opset} and IR version {facts.ir_version}; DeepImageJ's engine (ONNX "
            f"Runtime 1.13.1) reads up to {MAX_OPSET} and {MAX_IR_VERSION}. Train it with this version."
        )
    return facts.opset


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return buffer.getvalue()


def _tiff(image: NDArray[np.float32]) -> bytes:
    """(1, C, H, W) as pages."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image[0], photometric="minisblack")
    return buffer.getvalue()


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
