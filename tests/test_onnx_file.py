"""Models from outside: the raw bytes are checked, and damage of every kind ends in our own error."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from smlm_bridge.errors import InputRejected
from smlm_bridge.io.model import load_model
from smlm_bridge.io.onnx_file import inspect_onnx, with_metadata

DAMAGED_FILES = 250


def network(*, tensor: TensorProto | None = None, opset: int = 17) -> onnx.ModelProto:
    """An addition of a constant, which is an initializer."""
    value = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]) if tensor is None else tensor
    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("frames", "maps")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["frames", "w"], ["maps"])], "g", image[:1], image[1:], [value]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(location: str) -> TensorProto:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def inside_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external("weights.bin")))


def named_but_not_declared(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


def declared_but_not_named(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def control_flow(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))


def other_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def imported_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(
        helper.make_function("local", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
    )


def training_graph(model: onnx.ModelProto) -> None:
    model.training_info.add()


def many_nodes(model: onnx.ModelProto) -> None:
    for _ in range(20_001):
        model.graph.node.append(helper.make_node("Identity", ["frames"], ["x"]))


def test_facts_of_a_plain_file() -> None:
    facts = inspect_onnx(network(opset=13).SerializeToString(), name="x")
    assert (facts.ir_version, facts.opset, facts.nodes) == (8, 13, 1)


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "/etc/hostname", ""])
def test_external_initializers_are_refused(place: str) -> None:
    with pytest.raises(InputRejected, match="outside the file"):
        inspect_onnx(network(tensor=external(place)).SerializeToString(), name="x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (inside_a_constant, "outside the file"),
        (named_but_not_declared, "outside the file"),
        (declared_but_not_named, "outside the file"),
        (control_flow, "control flow"),
        (sparse, "sparse"),
        (other_domain, "com.example"),
        (imported_domain, "com.example"),
        (function, "functions"),
        (training_graph, "training graph"),
        (many_nodes, "20000 operators"),
    ],
)
def test_what_no_network_of_ours_has_is_refused(
    change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model = network()
    inspect_onnx(model.SerializeToString(), name="x")
    change(model)
    with pytest.raises(InputRejected, match=reason):
        inspect_onnx(model.SerializeToString(), name="x")


def test_a_second_graph_in_the_file_is_refused() -> None:
    # Protocol buffers merge repeated messages: a reader that looks at the last one only misses the first.
    data = network().SerializeToString()
    with pytest.raises(InputRejected, match="single graph"):
        inspect_onnx(data + data, name="x")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_refused_without_being_opened(tmp_path: Path, protocol: int) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "opened",)  # type: ignore[return-value]

    path = tmp_path / "x.onnx"
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(InputRejected):
        load_model(path)
    assert not (tmp_path / "opened").exists()


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(max_size=30), st.text(max_size=300), max_size=5))
def test_metadata_are_replaced_and_nothing_else(metadata: dict[str, str]) -> None:
    model = network()
    model.metadata_props.add(key="old", value="gone")
    read = onnx.load_model_from_string(with_metadata(model.SerializeToString(), metadata))
    assert {entry.key: entry.value for entry in read.metadata_props} == metadata
    assert read.graph == model.graph
    assert read.opset_import == model.opset_import
    assert numpy_helper.to_array(read.graph.initializer[0]).tolist() == [1.0]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputRejected):
        inspect_onnx(data, name="x")


def damaged(data: bytes, seed: int) -> bytes:
    """Bits turned, bytes lost, added, moved or blanked, in the graph, in the weights or in the metadata."""
    rng = random.Random(seed)
    out = bytearray(data)
    low, high = rng.choice([(0, len(out)), (0, 2000), (len(out) // 2, len(out)), (len(out) - 3000, len(out))])

    def place() -> int:
        return rng.randrange(max(0, low), high)

    kind, start = rng.randrange(6), place()
    if kind == 0:
        for _ in range(rng.choice([1, 3, 20])):
            out[place()] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[start:]
    elif kind == 2:
        del out[start : start + rng.choice([1, 4, 64, 5000])]
    elif kind == 3:
        out[start:start] = rng.randbytes(rng.choice([1, 8, 300]))
    elif kind == 4:
        source = place()
        out[start : start + 50] = out[source : source + 50]
    else:
        out[start : start + rng.choice([4, 100])] = b"\xff" * 4
    return bytes(out)


def test_a_corpus_of_damaged_files_ends_in_our_error(trained, tmp_path: Path) -> None:
    messages = []
    path = tmp_path / "x.onnx"
    for seed in range(DAMAGED_FILES):
        path.write_bytes(damaged(trained.onnx, seed))
        try:
            load_model(path, threads=1)
        except InputRejected as error:
            messages.append(str(error))
    assert all("x.onnx" in message for message in messages)
    assert len(messages) > DAMAGED_FILES // 2  # a turned bit of a weight is another weight


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"channels": 1.5}, "channels"),
        ({"size_step": "2"}, "size_step"),
        ({"threshold": "0.5"}, "threshold"),
        ({"name": ""}, "name"),
        ({"purpose": "x" * 3000}, "purpose"),
        ({"scores": [["jaccard", 1.0]]}, "scores"),
    ],
)
def test_metadata_of_another_type_are_rejected(
    trained, tmp_path: Path, change: dict[str, object], key: str
) -> None:
    import json

    metadata = trained.model.info.to_metadata()
    info = json.loads(metadata["smlm_bridge"]) | change
    path = tmp_path / "x.onnx"
    path.write_bytes(with_metadata(trained.onnx, {**metadata, "smlm_bridge": json.dumps(info)}))
    with pytest.raises(InputRejected, match=key):
        load_model(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with path.open("wb") as file:
        file.truncate(600_000_000)
    with pytest.raises(InputRejected, match="512 MB"):
        load_model(path)
