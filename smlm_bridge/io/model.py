"""Model files: strict loading of ONNX, without pickle and without data outside the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from smlm_bridge.errors import InputRejected, MissingDependency
from smlm_bridge.io.atomic import atomic_output
from smlm_bridge.io.shipped import find_shipped, shipped_folder, shipped_names
from smlm_bridge.model import Model, ModelInfo
from smlm_bridge.networks.maps import MAP_NAMES

_LARGEST_FILE = 512_000_000
_NOWHERE = "/dev/null/external-data"


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
    """The file of a model, given as a path or as the name of a shipped one.

    Raises
    ------
    InputRejected
        If there is neither.
    """
    path = find_shipped(path_or_name) or Path(path_or_name)
    if not path.is_file():
        raise InputRejected(
            f"no model '{path_or_name}': neither a file nor a shipped model "
            f"(there are: {', '.join(shipped_names()) or 'none'})."
        )
    return path


def load_model(path_or_name: Path | str, *, threads: int | None = None, device: str = "cpu") -> Model:
    """Load a model file, or a shipped model by name.

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
        If there is no such file, it is not ONNX, not ours, or refers to data outside itself.
    MissingDependency
        If a GPU is asked for and this ONNX Runtime has none.
    """
    path = find_model(path_or_name)
    if path.stat().st_size > _LARGEST_FILE:
        raise InputRejected(
            f"{path_or_name} is larger than {_LARGEST_FILE // 1_000_000} MB, no model of ours is."
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # From bytes and with a folder that cannot exist: data outside the file are then nowhere to be found.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=_providers(device))
    except MissingDependency:
        raise
    except Exception as error:
        text = str(error).splitlines()[0]
        raise InputRejected(f"{path_or_name} is not an ONNX model that can be run: {text}") from error
    info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, name=str(path_or_name))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    wanted = ("tensor(float)", "frames", info.channels), ("tensor(float)", "maps", len(MAP_NAMES))
    found = [(part.type, part.name, (*part.shape, None, None)[1]) for part in (*inputs, *outputs)]
    if found != list(wanted):
        raise InputRejected(
            f"{path_or_name}: a model takes {info.channels} channel(s) of 'frames' and returns "
            f"{len(MAP_NAMES)} 'maps'; this one has {found}."
        )

    def run(frames: NDArray[np.float32]) -> NDArray[np.float32]:
        maps: NDArray[np.float32] = session.run(
            ["maps"], {"frames": np.ascontiguousarray(frames, np.float32)}
        )[0]
        return maps

    return Model(info, run)


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
