"""Torch to ONNX: one file, opset 17, dynamic height and width, scaling inside the graph."""

import copy
import io
import warnings
from collections.abc import Mapping

import onnx
import torch
from torch import nn

from smlm_bridge.networks.dense import STABILISER

OPSET = 17
IR_VERSION = 8  # the newest that ONNX Runtime 1.13, DeepImageJ's engine, reads


def to_onnx(network: nn.Module, metadata: Mapping[str, str], *, channels: int, size_step: int) -> bytes:
    """An ONNX file of a network that maps ``frames`` (B, channels, H, W) to ``maps``.

    Parameters
    ----------
    network
        Left as it is; a copy is exported, in evaluation mode, from the CPU.
    metadata
        Written to ``metadata_props``.
    channels, size_step
        Of the input; height and width must be multiples of ``size_step``.
    """
    example = torch.full((1, channels, 8 * size_step, 8 * size_step), 100.0)
    axes = {0: "batch", 2: "height", 3: "width"}
    return _exported(network, metadata, example, {"frames": axes, "maps": axes})


def single_to_onnx(network: nn.Module, metadata: Mapping[str, str], *, channels: int, side: int) -> bytes:
    """An ONNX file of a network that maps ``boxes`` (B, channels, side, side) to ``estimates`` (B, 2K).

    See ``to_onnx`` for the arguments.
    """
    example = torch.full((2, channels, side, side), 100.0)
    return _exported(network, metadata, example, {"boxes": {0: "batch"}, "estimates": {0: "batch"}})


def volume_to_onnx(network: nn.Module, metadata: Mapping[str, str], *, channels: int) -> bytes:
    """An ONNX file of a network that maps ``frames`` (B, channels, H, W) to ``volume`` (B, D, uH, uW).

    See ``to_onnx`` for the arguments.
    """
    example = torch.full((1, channels, 16, 16), 100.0)
    axes = {0: "batch", 2: "height", 3: "width"}
    finer = {0: "batch", 2: "fine_height", 3: "fine_width"}
    return _exported(network, metadata, example, {"frames": axes, "volume": finer})


def _exported(
    network: nn.Module, metadata: Mapping[str, str], example: torch.Tensor, axes: Mapping[str, dict[int, str]]
) -> bytes:
    """A checked ONNX file; ``axes`` names the input, the output and their dynamic axes."""
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format)
    taken, given = axes
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its own retirement
        torch.onnx.export(
            network,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            # Batch norm stays apart, so that the weights can be read back; ONNX Runtime fuses it when it loads.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=[taken],
            output_names=[given],
            dynamic_axes=dict(axes),
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    model.ir_version = min(model.ir_version, IR_VERSION)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def weights_of(onnx_bytes: bytes) -> dict[str, torch.Tensor]:
    """The weights of a network that ``to_onnx`` wrote, by the names of its state."""
    graph = onnx.load_model_from_string(onnx_bytes).graph
    return {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
        if tensor.name.endswith((".weight", ".bias", ".running_mean", ".running_var"))
    }


def input_scaling_of(onnx_bytes: bytes) -> dict[str, float]:
    """The input scaling in the graph of a network that this module wrote: a start has to take it over.

    Returns
    -------
    ``read_variance``, ``input_shift`` and ``input_scale`` of ``dense.DenseScaling``; empty where the graph does
    not begin by stabilising its input.
    """
    graph = onnx.load_model_from_string(onnx_bytes).graph
    numbers = {
        node.output[0]: float(onnx.numpy_helper.to_array(node.attribute[0].t))
        for node in graph.node
        if node.op_type == "Constant" and not node.attribute[0].t.dims
    }
    found: dict[str, float] = {"Add": 0.0}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            break
        constants = [numbers[name] for name in node.input if name in numbers]
        if node.op_type in ("Add", "Sub", "Div") and constants:
            found[node.op_type] = found.get(node.op_type, 0.0) + constants[0]
    if found.keys() != {"Add", "Sub", "Div"}:
        return {}
    return {
        "read_variance": max(0.0, found["Add"] - STABILISER),
        "input_shift": found["Sub"],
        "input_scale": found["Div"],
    }
