"""Model files: strict loading of ONNX, without pickle and without data outside the file."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smlm_bridge.errors import InputRejected, MissingDependency
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.onnx_file import halves, inspect_onnx, with_features
from smlm_bridge.io.shipped import WEIGHTS, find_shipped, shipped_folder, shipped_names
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.model import Run as ModelRun
from smlm_bridge.networks.estimates import estimate_names
from smlm_bridge.networks.maps import MAP_NAMES

_LARGEST_FILE = 512_000_000
_NOWHERE = "/dev/null/external-data"


class _Metadata(BaseModel):
    """The text that travels in a model's file; a newer program may add keys, none may have another type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200)
    system: str = Field(max_length=200)
    purpose: str = Field(max_length=2000)
    ranges: dict[str, Any]
    channels: int
    size_step: int
    reach_px: int
    threshold: float
    training: dict[str, Any]
    scores: dict[str, Any]
    calibration_hash: str
    box_px: int = 0
    context_frames: int = 0
    coverage: dict[str, Any] = Field(default_factory=dict)
    volume: dict[str, Any] | None = None


@dataclass(frozen=True)
class ShippedModel:
    """A model that comes with the package; ``calibration`` is its file when it has one of its own."""

    name: str
    purpose: str
    file: Path
    calibration: Path


def shipped_models() -> list[ShippedModel]:
    """All shipped models, by name."""
    models = []
    for name in shipped_names():
        file = find_shipped(name) or shipped_folder() / name
        models.append(ShippedModel(name, load_model(file).info.purpose, file, file))
    return models


def save_model(path: Path | str, onnx_bytes: bytes, *, overwrite: bool = False) -> None:
    """Write a model file atomically; the name ends in ``.onnx``."""
    if Path(path).suffix != ".onnx":
        raise InputRejected(f"a model file ends in .onnx, got {path}.")
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        temporary.write_bytes(onnx_bytes)


def find_model(path_or_name: Path | str) -> Path:
    """The file of a model, given as a path, as the folder of an exported package or as a shipped one's name.

    Raises
    ------
    InputRejected
        If there is neither.
    """
    path = find_shipped(path_or_name) or Path(path_or_name)
    if path.is_dir() and (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    if not path.is_file():
        raise InputRejected(
            f"no model '{path_or_name}': neither a file nor a shipped model "
            f"(there are: {', '.join(shipped_names()) or 'none'})."
        )
    return path


def load_model(path_or_name: Path | str, *, threads: int | None = None, device: str = "cpu") -> Model:
    """Load a model file, or a shipped model by name.

    The file is not trusted: it is checked before ONNX Runtime sees it (``onnx_file.inspect_onnx``), nothing in
    it is unpickled or executed, and its metadata must have the types of the schema.

    Parameters
    ----------
    path_or_name
        File or name.
    threads
        CPU threads of the network; None leaves it to ONNX Runtime.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    InputRejected
        If there is no such file, it is larger than 512 MB, not ONNX, not ours, damaged, or refers to data
        outside itself.
    MissingDependency
        If a GPU is asked for and this ONNX Runtime has none.
    """
    path = find_model(path_or_name)
    if path.stat().st_size > _LARGEST_FILE:
        raise InputRejected(
            f"{path_or_name} is larger than {_LARGEST_FILE // 1_000_000} MB, no model of ours is."
        )
    data = path.read_bytes()
    inspect_onnx(data, name=str(path_or_name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # The second lock on data outside the file: from bytes, and with a folder that cannot exist.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=_providers(device))
    except MissingDependency:
        raise
    except Exception as error:
        text = str(error).splitlines()[0]
        raise InputRejected(f"{path_or_name} is not an ONNX model that can be run: {text}") from error
    info = _read_info(session, str(path_or_name))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    taken, given, count = "frames", "maps", len(MAP_NAMES)
    if info.volume is not None:
        given, count = "volume", info.volume.planes
    elif info.box_px:
        taken, given, count = "boxes", "estimates", len(_estimates(info, str(path_or_name)))
    wanted = ("tensor(float)", taken, info.inputs), ("tensor(float)", given, count)
    found = [(part.type, part.name, (*part.shape, None, None)[1]) for part in (*inputs, *outputs)]
    if found != list(wanted):
        raise InputRejected(
            f"{path_or_name}: this model takes {info.inputs} channel(s) of '{taken}' and returns "
            f"{count} '{given}'; the file has {found}."
        )
    if info.box_px and list(inputs[0].shape[2:]) != [info.box_px] * 2:
        raise InputRejected(
            f"{path_or_name}: the metadata speak of boxes of {info.box_px} px, the network takes "
            f"{inputs[0].shape}."
        )

    def run(frames: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run([given], {taken: np.ascontiguousarray(frames, np.float32)})[
            0
        ]
        return found

    @functools.cache
    def seen() -> tuple[Any, str]:
        extended = with_features(data)
        if extended is None:
            raise InputRejected(
                f"{path_or_name}: the network has no layer of weights whose input could be shown."
            )
        return onnxruntime.InferenceSession(extended[0], options, providers=_providers(device)), extended[1]

    def features(frames: NDArray[np.float32]) -> NDArray[np.float32]:
        asked, name = seen()
        found: NDArray[np.float32] = asked.run([name], {taken: np.ascontiguousarray(frames, np.float32)})[0]
        return found

    if info.volume is None:
        return Model(info, run, features)
    return Model(info, run, None, _stages(data, str(path_or_name), given, options, _providers(device)))


def _stages(
    data: bytes, name: str, given: str, options: Any, providers: list[Any]
) -> tuple[ModelRun, ModelRun]:
    """The network before its first upsampling, and from it on."""
    cut = halves(data, "Resize")
    if cut is None:
        raise InputRejected(f"{name}: a network of volumes upsamples, this one does not.")
    between = cut[2]
    # What a tile took is given back; without, tiles of several sizes fill the memory with what they left.
    frugal = onnxruntime.RunOptions()
    frugal.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    first, second = (onnxruntime.InferenceSession(half, options, providers=providers) for half in cut[:2])

    def context(frames: NDArray[np.float32]) -> NDArray[np.float32]:
        given_frames = np.ascontiguousarray(frames, np.float32)
        found: NDArray[np.float32] = first.run([between], {"frames": given_frames}, frugal)[0]
        return found

    def tail(features: NDArray[np.float32]) -> NDArray[np.float32]:
        part = np.ascontiguousarray(features)
        found: NDArray[np.float32] = second.run([given], {between: part}, frugal)[0]
        return found

    return context, tail


def _estimates(info: ModelInfo, name: str) -> tuple[str, ...]:
    """The names of what a model of single emitters returns."""
    try:
        return estimate_names(info.ranges.get("zernike_rad", ()))
    except (TypeError, ValueError, IndexError) as error:
        raise InputRejected(
            f"{name}: 'zernike_rad' in the ranges of the model is damaged ({error})."
        ) from error


def _read_info(session: Any, name: str) -> ModelInfo:
    """The metadata, checked against the schema."""
    try:
        metadata = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise InputRejected(f"{name}: the metadata of the model is damaged ({error}).") from error
    info = ModelInfo.from_metadata(metadata, name=name)
    try:
        _Metadata.model_validate_json(metadata["smlm_bridge"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "metadata"
        raise InputRejected(f"{name}: '{key}' in the metadata of the model: {first['msg']}.") from error
    return info


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise MissingDependency(
            f"device '{device}' needs onnxruntime-gpu; this onnxruntime has "
            f"{onnxruntime.get_available_providers()}. Install it, or use --device cpu."
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
