# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's parser asks of some operators beyond their types: the notes of operators.json, as far as a graph
shows whether they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from ...export.graph import attribute, constant
from .patterns import dft_axis, length, rank_of

_COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"})
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_GIVE_SHAPE: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs whose value is, or makes, a shape of the output."""


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _computed(node: ir.Node, index: int) -> bool:
    """Whether an input is given and not a constant."""
    value = _input(node, index)
    return value is not None and constant(value) is None


def _more_outputs(node: ir.Node) -> bool:
    return any(output.name for output in node.outputs[1:])


def _attention(node: ir.Node) -> bool:
    ranks = {rank_of(value) for value in node.inputs[:4] if value is not None}
    refused = ("softmax_precision", "qk_matmul_output_mode")
    return (
        not ranks <= {4, None}
        or any(value is not None for value in node.inputs[4:])
        or _more_outputs(node)
        or attribute(node, "softcap", 0.0) != 0
        or any(name in node.attributes for name in refused)
    )


def _pool(node: ir.Node) -> bool:
    dilated = any(step != 1 for step in attribute(node, "dilations", ()))
    return rank_of(node.inputs[0]) not in (4, 5, None) or dilated or _more_outputs(node)


def _batch_normalization(node: ir.Node) -> bool:
    return bool(attribute(node, "training_mode", 0)) or _more_outputs(node)


def _computed_axes(node: ir.Node) -> bool:
    return _computed(node, 1)


def _grid_sample(node: ir.Node) -> bool:
    return rank_of(node.inputs[0]) not in (4, None)


def _resize(node: ir.Node) -> bool:
    return (
        attribute(node, "coordinate_transformation_mode", "half_pixel") not in _COORDINATES
        or attribute(node, "mode", "nearest") not in ("nearest", "linear")
        or attribute(node, "antialias", 0) != 0
        or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    )


def _scatter_nd(node: ir.Node) -> bool:
    return str(attribute(node, "reduction", "none")) != "none"


def _stft(node: ir.Node) -> bool:
    return _computed(node, 1) or _computed(node, 2)


def _top_k(node: ir.Node) -> bool:
    return int(attribute(node, "sorted", 1)) != 1


def _dft(node: ir.Node) -> bool:
    back_to_real = attribute(node, "inverse", 0) == 1 and attribute(node, "onesided", 0) == 1
    has_length = _input(node, 1) is not None
    return dft_axis(node) != -2 or length(node.inputs[0], -1) not in (1, 2) or has_length != back_to_real


def _if(node: ir.Node) -> bool:
    then, other = attribute(node, "then_branch"), attribute(node, "else_branch")
    pairs = list(zip(then.outputs, other.outputs, strict=True))
    ranks = [(rank_of(one), rank_of(another)) for one, another in pairs]
    differ = any(None not in pair and pair[0] != pair[1] for pair in ranks)
    return differ or any(one.name == another.name for one, another in pairs)


def _loop(node: ir.Node) -> bool:
    body: ir.Graph = attribute(node, "body")
    carried = len(node.inputs) - 2
    stacks = len(body.outputs) > 1 + carried
    pairs = zip(body.inputs[2:], body.outputs[1 : 1 + carried], strict=True)
    return (stacks and _computed(node, 0)) or any(map(_changes_shape, pairs)) or _carries_shape(body)


def _changes_shape(carried: tuple[ir.Value, ir.Value]) -> bool:
    before, after = (value.shape for value in carried)
    if before is None or after is None:
        return False
    sizes = zip(before, after, strict=False)
    known = [pair for pair in sizes if all(isinstance(size, int) for size in pair)]
    return len(before) != len(after) or any(old != new for old, new in known)


def _carries_shape(body: ir.Graph) -> bool:
    """Whether a shape in the loop follows from the value of what the loop carries on, or from its counter."""
    following = {*body.inputs}
    for node in body:
        if any(_input(node, index) in following for index in _GIVE_SHAPE.get(node.op_type, ())):
            return True
        if node.op_type not in ("Shape", "Size") and any(value in following for value in node.inputs):
            following.update(node.outputs)
    return False


BREAKS: Mapping[str, Callable[[ir.Node], bool]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _batch_normalization,
    "CumSum": _computed_axes,
    "DFT": _dft,
    "GridSample": _grid_sample,
    "If": _if,
    "LayerNormalization": _more_outputs,
    "Loop": _loop,
    "LpPool": _pool,
    "MaxPool": _pool,
    "OneHot": _computed_axes,
    "Resize": _resize,
    "STFT": _stft,
    "ScatterND": _scatter_nd,
    "Squeeze": _computed_axes,
    "TopK": _top_k,
    "Unsqueeze": _computed_axes,
    **{f"Reduce{name}": _computed_axes for name in _REDUCTIONS},
}
"""Whether a node breaks the note of its operator."""
