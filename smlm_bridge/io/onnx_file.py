"""The bytes of an ONNX file, read without running anything: is it one self-contained graph?

A model from outside is looked at here before ONNX Runtime sees it. Protocol Buffers are few rules (a field is
a number, a kind and a value), so the plain install needs no ``onnx`` for this. Field numbers are those of
``onnx.proto`` (ONNX 1.0 and later; they never change).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from smlm_bridge.errors import InputRejected

MAX_OPSET: Final = 17
MAX_IR_VERSION: Final = 8
_MOST_NODES = 20_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_MOST_BITS = 70
_WEIGHTED = (b"Conv", b"Gemm", b"MatMul")

# Numbers of the fields that are looked at, a line for each message.
_IR, _GRAPH, _OPSET, _METADATA, _TRAINING, _FUNCTIONS = 1, 7, 8, 14, 20, 25  # ModelProto
_NODE, _GRAPH_NAME, _INITIALIZER = 1, 2, 5  # GraphProto
_GRAPH_INPUT, _OUTPUT, _SPARSE_INITIALIZER = 11, 12, 15  # GraphProto
_INPUT, _NODE_OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23  # AttributeProto
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # TensorProto
# ValueInfoProto.type of a tensor of floats of any shape: TypeProto.tensor_type.elem_type = 1.
_FLOATS: Final = b"\x0a\x02\x08\x01"

Field = tuple[int, int | memoryview]


@dataclass(frozen=True)
class OnnxFacts:
    """What the header of an ONNX file says.

    Parameters
    ----------
    ir_version
        Version of the file format.
    opset
        Version of the standard operators.
    nodes
        How many operators the graph has.
    """

    ir_version: int
    opset: int
    nodes: int


def inspect_onnx(data: bytes, *, name: str) -> OnnxFacts:
    """Check that a file is one ONNX graph of standard operators with all of its numbers inside.

    Parameters
    ----------
    data
        The whole file.
    name
        What to call it in messages.

    Raises
    ------
    InputRejected
        If it is no ONNX file, refers to data outside itself, or holds what no network of ours has:
        sparse tensors, control flow, functions, training graphs, operators of other domains, over 20 000 nodes.
    """
    try:
        return _inspect(data)
    except _Refused as reason:
        raise InputRejected(
            f"{name} is not an ONNX model that can be run here: {reason}. A model is one .onnx file that "
            "'smlm-bridge train' wrote; ask for such a file."
        ) from None


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same ONNX file with these ``metadata_props`` instead of its own.

    Raises
    ------
    InputRejected
        If ``data`` is no protocol buffer.
    """
    view = memoryview(data)
    kept, start = [], 0
    try:
        for number, _, stop in _spans(view):
            if number != _METADATA:
                kept.append(bytes(view[start:stop]))
            start = stop
    except _Refused as reason:
        raise InputRejected(f"the model cannot be read: {reason}.") from None
    entries = [
        _entry(_METADATA, _entry(1, key.encode()) + _entry(2, value.encode()))
        for key, value in metadata.items()
    ]
    return b"".join((*kept, *entries))


def with_features(data: bytes) -> tuple[bytes, str] | None:
    """The same ONNX file with what its last layer of weights sees as one more output, and the output's name.

    None where the graph has no such layer.

    Raises
    ------
    InputRejected
        If ``data`` is no protocol buffer.
    """
    view = memoryview(data)
    parts, name, start = [], b"", 0
    try:
        for number, value, stop in _spans(view):
            if number == _GRAPH:
                graph = _message(value)
                name = _last_weighted_input(graph)
                parts.append(_entry(_GRAPH, bytes(graph) + _entry(_OUTPUT, _entry(1, name))))
            else:
                parts.append(bytes(view[start:stop]))
            start = stop
    except _Refused as reason:
        raise InputRejected(f"the model cannot be read: {reason}.") from None
    return (b"".join(parts), name.decode()) if name else None


def halves(data: bytes, operator: str) -> tuple[bytes, bytes, str] | None:
    """An ONNX file cut in two before its first ``operator``, and the name of the tensor between the halves.

    The first half gives what that operator takes first; the second takes it and gives what the whole gives. None
    where the graph has no such operator.

    Raises
    ------
    InputRejected
        If ``data`` is no protocol buffer, or its second half also needs what the first was given.
    """
    try:
        header, graph = _taken_apart(memoryview(data))
        between = next((ins[0] for kind, ins, _, _ in graph.nodes if kind == operator.encode() and ins), b"")
        if not between:
            return None
        first = graph.part({between}, graph.inputs, [_entry(1, between)])
        taken = [_entry(1, between) + _entry(2, _FLOATS)]
        second = graph.part(graph.given, taken, graph.outputs, without=between)
    except _Refused as reason:
        raise InputRejected(f"the model cannot be cut in two: {reason}.") from None
    return header + _entry(_GRAPH, first), header + _entry(_GRAPH, second), between.decode()


@dataclass(frozen=True)
class _Graph:
    """A graph taken apart: operators as kind, inputs, outputs and bytes, and everything else as bytes."""

    nodes: list[tuple[bytes, list[bytes], list[bytes], bytes]]
    weights: dict[bytes, bytes]
    inputs: list[bytes]
    outputs: list[bytes]
    given: set[bytes]

    def part(
        self, wanted: set[bytes], inputs: list[bytes], outputs: list[bytes], *, without: bytes = b""
    ) -> bytes:
        """The graph that makes ``wanted``, where ``without`` is given from outside."""
        needed, kept = set(wanted), []
        for _, taken, made, node in reversed(self.nodes):  # they stand in the order of their work
            if needed & set(made) - {without}:
                kept.append(_entry(_NODE, node))
                needed |= set(taken)
        missing = needed & {_name_of(value) for value in self.inputs}
        if without and missing:
            raise _Refused(f"both halves need {sorted(missing)}")
        weights = [_entry(_INITIALIZER, value) for name, value in self.weights.items() if name in needed]
        ends = [_entry(_GRAPH_INPUT, value) for value in inputs]
        ends += [_entry(_OUTPUT, value) for value in outputs]
        return b"".join((*reversed(kept), _entry(_GRAPH_NAME, b"half"), *weights, *ends))


def _taken_apart(view: memoryview) -> tuple[bytes, _Graph]:
    """What stands beside the graph, without metadata, and the graph."""
    header, start = [], 0
    found = _Graph([], {}, [], [], set())
    for number, value, stop in _spans(view):
        if number == _GRAPH:
            for part, content in _fields(_message(value)):
                _take(found, part, content)
        elif number != _METADATA:
            header.append(bytes(view[start:stop]))
        start = stop
    return b"".join(header), found


def _take(found: _Graph, part: int, content: int | memoryview) -> None:
    """Put one part of a graph where it belongs."""
    if part == _NODE:
        names: dict[int, list[bytes]] = {_INPUT: [], _NODE_OUTPUT: [], _OP_TYPE: []}
        for field, value in _fields(_message(content)):
            if field in names:
                names[field].append(bytes(_message(value)))
        kind = b"".join(names[_OP_TYPE])
        found.nodes.append((kind, names[_INPUT], names[_NODE_OUTPUT], bytes(_message(content))))
    elif part == _INITIALIZER:
        name = b"".join(bytes(_message(v)) for f, v in _fields(_message(content)) if f == _TENSOR_NAME)
        found.weights[name] = bytes(_message(content))
    elif part == _GRAPH_INPUT:
        found.inputs.append(bytes(_message(content)))
    elif part == _OUTPUT:
        found.outputs.append(bytes(_message(content)))
        found.given.add(_name_of(found.outputs[-1]))


def _name_of(value_info: bytes) -> bytes:
    return b"".join(bytes(_message(v)) for f, v in _fields(memoryview(value_info)) if f == 1)


def _last_weighted_input(graph: memoryview) -> bytes:
    """The first input of the last convolution or matrix product; operators stand in the order of their work."""
    name = b""
    for number, value in _fields(graph):
        if number != _NODE:
            continue
        inputs, kind = [], b""
        for part, content in _fields(_message(value)):
            if part == _INPUT:
                inputs.append(bytes(_message(content)))
            elif part == _OP_TYPE:
                kind = bytes(_message(content))
        if kind in _WEIGHTED and inputs:
            name = inputs[0]
    return name


class _Refused(Exception):
    """Why a file is refused; never leaves this module."""


def _inspect(data: bytes) -> OnnxFacts:
    ir_version, opset, nodes, graphs = 0, 0, 0, 0
    for number, value in _fields(memoryview(data)):
        if number == _IR:
            ir_version = _number(value)
        elif number == _GRAPH:
            graphs += 1
            nodes += _check_graph(_message(value))
        elif number == _OPSET:
            domain, version = _opset(_message(value))
            _check_domain(domain)
            opset = max(opset, version)
        elif number in (_TRAINING, _FUNCTIONS):
            raise _Refused("it holds functions or a training graph")
    if graphs != 1 or not ir_version or not opset or not nodes:
        raise _Refused("it is no ONNX file, or a damaged one (no single graph with its version)")
    return OnnxFacts(ir_version, opset, nodes)


def _opset(message: memoryview) -> tuple[bytes, int]:
    domain, version = b"", 0
    for number, value in _fields(message):
        if number == 1:
            domain = bytes(_message(value))
        elif number == 2:
            version = _number(value)
    return domain, version


def _check_graph(graph: memoryview) -> int:
    nodes = 0
    for number, value in _fields(graph):
        if number == _NODE:
            nodes += 1
            if nodes > _MOST_NODES:
                raise _Refused(f"it has more than {_MOST_NODES} operators")
            _check_node(_message(value))
        elif number == _INITIALIZER:
            _check_tensor(_message(value))
        elif number == _SPARSE_INITIALIZER:
            raise _Refused("it holds sparse tensors")
    return nodes


def _check_node(node: memoryview) -> None:
    for number, value in _fields(node):
        if number == _ATTRIBUTE:
            _check_attribute(_message(value))
        elif number == _DOMAIN:
            _check_domain(bytes(_message(value)))


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in (_TENSOR, _TENSORS):
            _check_tensor(_message(value))
        elif number in (_SUBGRAPH, _SUBGRAPHS):
            raise _Refused("it holds control flow (a graph inside an operator)")
        elif number in (_SPARSE, _SPARSES):
            raise _Refused("it holds sparse tensors")


def _check_tensor(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            raise _Refused("it refers to data outside the file")


def _check_domain(domain: bytes) -> None:
    if domain not in _STANDARD_DOMAINS:
        raise _Refused(f"it has operators of {domain[:40].decode('utf-8', 'replace')!r}, not of ONNX")


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Refused("it is damaged (a number is missing)")
    return value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Refused("it is damaged (a part is missing)")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of every field, in order."""
    for number, value, _ in _spans(message):
        yield number, value


def _spans(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """Number, value and end of every field: varints as int, everything else as its bytes."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _Refused("it is no protocol buffer")
        value: int | memoryview
        if kind == _VARINT:
            value, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32, _BYTES):
            length = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                length, position = _varint(message, position)
            if length > end - position:
                raise _Refused("it is cut off, or no protocol buffer")
            value = message[position : position + length]
            position += length
        else:
            raise _Refused("it is no protocol buffer")
        yield number, value, position


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while position < len(message) and shift < _MOST_BITS:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Refused("it is cut off, or no protocol buffer")


def _entry(number: int, payload: bytes) -> bytes:
    """A field of bytes."""
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(payload)) + payload


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
