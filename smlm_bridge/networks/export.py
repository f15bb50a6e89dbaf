"""Torch to ONNX: one file, opset 17, dynamic height and width, scaling inside the graph."""

import copy
import io
import warnings
from collections.abc import Mapping

import onnx
import torch
from torch import nn

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
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format)
    example = torch.full((1, channels, 8 * size_step, 8 * size_step), 100.0)
    axes = {0: "batch", 2: "height", 3: "width"}
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
            input_names=["frames"],
            output_names=["maps"],
            dynamic_axes={"frames": axes, "maps": axes},
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
