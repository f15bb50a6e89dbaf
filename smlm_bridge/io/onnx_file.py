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

# Numbers of the fields that are looked at, a line for each message.
_IR, _GRAPH, _OPSET, _METADATA, _TRAINING, _FUNCTIONS = 1, 7, 8, 14, 20, 25  # ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
_ATTRIBUTE, _DOMAIN = 5, 7  # NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23  # AttributeProto
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # TensorProto

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
