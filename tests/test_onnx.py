"""The model file: ONNX Runtime agrees with torch, the metadata travel, strangers are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from smlm_bridge.errors import InputRejected, MissingDependency
from smlm_bridge.io.calibration import load_calibration
from smlm_bridge.io.model import load_model, save_model
from smlm_bridge.io.shipped import find_shipped
from smlm_bridge.model import ModelInfo
from smlm_bridge.networks.export import to_onnx
from smlm_bridge.networks.maps import MAP_NAMES


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 24), (5, 34, 18), (2, 2, 2), (7, 64, 48)])
def test_runtime_agrees_with_torch(trained, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(sum(shape))
    images = generator.gamma(2.0, 30.0, (shape[0], 1, *shape[1:])).astype(np.float32)
    with torch.no_grad():
        wanted = trained.trainer.network.eval()(torch.from_numpy(images)).numpy()
    maps = trained.model.run(images)
    assert maps.shape == wanted.shape == (shape[0], len(MAP_NAMES), *shape[1:])
    span = np.ptp(wanted, axis=(0, 2, 3))
    error = np.abs(maps - wanted).max(axis=(0, 2, 3))
    assert (error <= 1e-4 * np.maximum(span, 1e-3)).all()


def test_the_file_is_one_that_old_engines_read(trained) -> None:
    model = onnx.load_model_from_string(trained.onnx)
    assert {part.domain: part.version for part in model.opset_import}.get("") == 17
    assert model.ir_version <= 8
    assert [i.name for i in model.graph.input] == ["frames"]
    assert [o.name for o in model.graph.output] == ["maps"]
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(dim.dim_param) for dim in dims] == [True, False, True, True]


def test_export_leaves_the_network_as_it_is(trained) -> None:
    network = trained.trainer.network
    network.train()
    layout = network.out.weight.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    again = to_onnx(network, {}, channels=1, size_step=network.size_step)
    assert torch.equal(torch.rand(1), wanted)
    assert network.training
    assert network.out.weight.is_contiguous(memory_format=torch.channels_last) == layout
    assert len(again) < len(trained.onnx)
    network.eval()


def test_metadata_carry_the_whole_calibration(trained) -> None:
    info = trained.model.info
    calibration = trained.trainer.calibration
    assert info.calibration.hash == calibration.hash
    assert dict(info.calibration.provenance) == {"made_by": "tests"}
    assert (info.name, info.system, info.purpose) == ("tiny", "dense", "tests")
    assert info.size_step == 2
    assert info.reach_px == trained.trainer.network.reach
    assert json.loads(json.dumps(info.ranges)) == json.loads(json.dumps(trained.trainer.ranges.to_json()))
    assert load_calibration(trained.path).hash == calibration.hash
    again = ModelInfo.from_metadata(info.to_metadata(), name="again")
    assert again.to_metadata() == info.to_metadata()


def metadata_with(info: ModelInfo, **changes: object) -> dict[str, str]:
    metadata = info.to_metadata()
    parts = json.loads(metadata["smlm_bridge"]) | changes
    return {**metadata, "smlm_bridge": json.dumps({k: v for k, v in parts.items() if v is not None})}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, "version 3"),
        ({"format": "theirs"}, "theirs"),
        ({"name": None}, "damaged"),
        ({"channels": None}, "damaged"),
        ({"channels": 0}, "no sizes"),
        ({"channels": "many"}, "damaged"),
        ({"size_step": 1000}, "no sizes"),
        ({"reach_px": -1}, "no sizes"),
        ({"reach_px": 1e400}, "damaged"),
        ({"ranges": [1]}, "damaged"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 5}, "threshold"),
        ({"calibration_hash": "0" * 64}, "not the one"),
    ],
)
def test_metadata_name_what_is_wrong(trained, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputRejected, match=words):
        ModelInfo.from_metadata(metadata_with(trained.model.info, **changes), name="x.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"smlm_bridge": "{"},
        {"smlm_bridge": "[]"},
        {"smlm_bridge": "[" * 100_000},
        {"smlm_bridge.calibration": "???"},
        {"smlm_bridge.calibration": "QUJD"},
    ],
)
def test_broken_metadata_are_rejected(trained, change: dict[str, str]) -> None:
    with pytest.raises(InputRejected):
        ModelInfo.from_metadata(trained.model.info.to_metadata() | change, name="x.onnx")


# --- strangers --------------------------------------------------------------------------------------------------


def altered(trained, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_model_from_string(trained.onnx)
    change(model)
    data: bytes = model.SerializeToString()
    return data


def identity(channels: int | str = 1, *, out: str = "maps", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    frames, maps = (
        helper.make_tensor_value_info(name, kind, ["b", channels, "h", "w"]) for name in ("frames", out)
    )
    graph = helper.make_graph([helper.make_node("Identity", ["frames"], [out])], "g", [frames], [maps])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_foreign_onnx_is_rejected(trained, tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", identity().SerializeToString())
    with pytest.raises(InputRejected, match="not a model of smlm_bridge"):
        load_model(path)


@pytest.mark.parametrize(
    "model",
    [identity(), identity(10), identity(out="image"), identity(kind=TensorProto.DOUBLE), identity("c")],
)
def test_our_metadata_on_another_network_are_rejected(
    trained, tmp_path: Path, model: onnx.ModelProto
) -> None:
    for key, value in trained.model.info.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    path = save(tmp_path / "x.onnx", model.SerializeToString())
    with pytest.raises(InputRejected, match="maps"):
        load_model(path)


@pytest.mark.parametrize("data", [b"", b"no", b"\x80\x04K\x01.", bytes(1000)])
def test_what_is_no_onnx_is_rejected(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputRejected):
        load_model(save(tmp_path / "x.onnx", data))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_models_are_rejected(trained, tmp_path: Path, share: float) -> None:
    with pytest.raises(InputRejected):
        load_model(save(tmp_path / "x.onnx", trained.onnx[: int(share * len(trained.onnx))]))


@pytest.mark.parametrize("place", ["beside the model", "in the working folder"])
def test_data_outside_the_file_are_refused(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def move_out(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        values = numpy_helper.to_array(tensor)
        (tmp_path / "weights.bin").write_bytes(values.tobytes())
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.external_data.add(key="length", value=str(values.nbytes))

    path = save(tmp_path / "x.onnx", altered(trained, move_out))
    monkeypatch.chdir(tmp_path if place == "in the working folder" else "/")
    with pytest.raises(InputRejected, match="x\\.onnx"):
        load_model(path)


def test_names_and_places(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputRejected, match="no model 'nobody'"):
        load_model("nobody")
    with pytest.raises(InputRejected, match="\\.onnx"):
        save_model(tmp_path / "x.pt", trained.onnx)
    with pytest.raises(InputRejected, match="overwrite"):
        save_model(trained.path, trained.onnx)
    assert find_shipped("nobody") is None
    assert find_shipped(trained.path) is None
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match="onnxruntime-gpu"):
        load_model(trained.path, device="cuda")
