# SPDX-License-Identifier: Apache-2.0
"""Lowered -> Converted in INT8: QuantizeLinear and DequantizeLinear where a target's placement wants them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..artifacts import Converted, KeptLayer, Lowered
from ..errors import CalibrationError
from ..export.graph import Builder, attribute, constant, module_of, producer
from ..export.precision import convert, count_layers, float32_reasons
from .centring import Shift, centred, give_back
from .placement import LAYERS, PLACEMENTS, SMALLEST_RANGE, Kind, Placement, QuantizedFor
from .residuals import layers_behind, quantize_residuals, residual_additions

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest value that eight bits are spent on, by the name of the tensor."""
_PAIR = 127
"""The most that two weights of one sign may be together: 255 times one more, by rounding, is less than 2^15."""
_LEAST_STEP = 8 * 4.8e-4
"""Of what is quantised behind a GELU by tanh, which is at most 4.8e-4 off (at 2.7)."""
_NEXT_TO_NOTHING = 1e-30
"""An offset that is no zero, which would be left out; float32 numbers above 2e-23 stay what they are."""
QUANTIZED = "_quantized"
"""What ONNX Runtime's quantiser puts after the name of a weight."""
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer that multiplies.

    Attributes:
        module: path of its PyTorch module.
    """

    node: ir.Node
    module: str
    kind: Kind
    quantised: bool
    reason: str


def decide(lowered: Lowered, placement: Placement, keep: Mapping[str, str] | None = None) -> tuple[Decision, ...]:
    """For every layer of a graph that multiplies, whether it computes in eight bits, in graph order.

    Args:
        keep: modules that stay in high precision in any case, with the reason, by PyTorch name.
    """
    required = float32_reasons(lowered.model.graph)
    return tuple(_decided(node, kind, placement, required, keep or {}) for node, kind in _multiplying(lowered.model))


def observed(lowered: Lowered) -> tuple[str, ...]:
    """Names of all tensors that any target may want to quantise, under any plan: those to be calibrated."""
    found: dict[str, None] = {}
    for node, _ in _multiplying(lowered.model):
        names = [str(value.name) for value in node.inputs[:2] if value is not None and constant(value) is None]
        found |= dict.fromkeys([*names, *([str(node.outputs[0].name)] if node.op_type == "Conv" else [])])
    found |= dict.fromkeys(str(branch.name) for _, _, branch in residual_additions(lowered.model.graph))
    return tuple(found)


def quantize(
    lowered: Lowered,
    ranges: Ranges,
    target: QuantizedFor,
    *,
    keep: Mapping[str, str] | None = None,
    weight_bits: int = 8,
    max_abs: Mapping[str, float] | None = None,
) -> Converted:
    """Put Q/DQ pairs into a copy of a float32 graph.

    Args:
        ranges: of all that `observed` names.
        target: "tensorrt" has all else in float16 (scales as well) with its islands of float32, others in float32.
        keep: modules that stay in high precision, with the reason.
        weight_bits: 7 for a processor that adds pairs of products in 16 bits, where 8 would overflow: pairs of weights
            are kept small enough together.
        max_abs: largest magnitudes on a sample batch, as `convert` takes them, for "tensorrt".

    Raises:
        CalibrationError: a range is missing.
    """
    placement = PLACEMENTS[target]
    decisions = decide(lowered, placement, keep)
    nodes = [each.node for each in decisions if each.quantised]
    missing = [name for name in _wanted(nodes, placement) if name not in ranges]
    if missing:
        raise CalibrationError(f"there is no range for {missing[0]}; calibrate again with --calib-data.")
    source: ir.Model = lowered.model
    shifts: tuple[Shift, ...] = ()
    if placement.centred:
        one_sided = [each.node for each in decisions if each.quantised and each.kind in placement.centred]
        source, ranges, shifts = centred(lowered.model, one_sided, ranges)
    model = _with_pairs(source, nodes, ranges, placement, weight_bits)
    _leave_others_alone(model.graph, {str(node.name) for node in nodes}, placement)
    if placement.residuals:
        additions = residual_additions(lowered.model.graph)
        joined = [each for each in additions if not layers_behind(each[2]).isdisjoint(nodes)]
        quantize_residuals(model.graph, joined, ranges)
    if placement.tanh_gelu:
        _approximate_gelus(model.graph)
    if placement.offsets:
        _give_offsets(model.graph)
    kept = _kept(decisions)
    if target == "tensorrt":
        half = convert(Lowered(lowered.spec, model, lowered.form, lowered.passes), "fp16", max_abs=max_abs or {})
        model, kept = half.model, (*kept, *half.kept)
    give_back(model, shifts)
    return Converted(lowered.spec, model, lowered.form, "int8", kept, count_layers(model.graph))


def _multiplying(model: ir.Model) -> Iterator[tuple[ir.Node, Kind]]:
    graph = model.graph
    images = set(graph.inputs)
    head = _head(graph)
    for node in graph:
        if node.domain != "" or node.op_type not in LAYERS:
            continue
        weight = constant(node.inputs[1])
        if weight is None:
            if constant(node.inputs[0]) is None:
                yield node, "product"
        elif node is head:
            yield node, "head"
        elif node.op_type != "Conv":
            yield node, "matmul" if node.op_type == "MatMul" else "linear"
        elif attribute(node, "group", 1) > 1:
            yield node, _grouped(node, weight.shape[1])
        elif node.inputs[0] in images:
            yield node, "stem"
        else:
            yield node, "linear" if weight.shape[2:] == (1, 1) else "convolution"


def _grouped(conv: ir.Node, channels: int) -> Kind:
    """The kind of a convolution with groups of so many input channels."""
    if producer(conv.inputs[0], "Conv") is None:
        return "lone depthwise"
    return "depthwise" if channels == 1 else "grouped"


def _head(graph: ir.Graph) -> ir.Node | None:
    """The linear layer that makes the logits."""
    node = graph.outputs[0].producer()
    return node if len(graph.outputs) == 1 and node is not None and node.op_type in ("Gemm", "MatMul") else None


def _decided(
    node: ir.Node, kind: Kind, placement: Placement, required: Mapping[ir.Node, str], keep: Mapping[str, str]
) -> Decision:
    module, rule = module_of(node), placement.rules[kind]
    if reason := required.get(node):
        return Decision(node, module, kind, False, reason)
    if (named := module or "model") in keep:
        return Decision(node, module, kind, False, keep[named])
    return Decision(node, module, kind, rule.quantised, rule.reason)


def _wanted(nodes: Sequence[ir.Node], placement: Placement) -> list[str]:
    """Names of computed tensors that get a Q/DQ pair."""
    inputs = [value for node in nodes for value in node.inputs[:2] if value is not None and constant(value) is None]
    outputs = [node.outputs[0] for node in nodes if node.op_type in placement.outputs]
    return list(dict.fromkeys(str(value.name) for value in (*inputs, *outputs)))


def _with_pairs(
    model: ir.Model, nodes: Sequence[ir.Node], ranges: Ranges, placement: Placement, weight_bits: int
) -> ir.Model:
    """ONNX Runtime's quantiser at work on these nodes."""
    found = {
        name: TensorData(lowest=np.float32(min(low, 0.0)), highest=np.float32(max(high, 0.0)))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        ir.to_proto(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if placement.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, found),
        nodes_to_quantize=[str(node.name) for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=list(LAYERS),
        extra_options={
            "ActivationSymmetric": placement.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": [op for op in LAYERS if op not in placement.outputs],
            "QDQOpTypePerChannelSupportToAxis": {"Conv": 0},
            "TensorQuantOverrides": {} if weight_bits == 8 else _ranges_without_overflow(nodes),
            "MinimumRealRange": SMALLEST_RANGE if placement.symmetric else None,
        },
    )
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it tells the root logger what is wanted here: that no model was preprocessed
    try:
        quantizer.quantize_model()
    finally:
        root.setLevel(level)
    paired: ir.Model = ir.from_proto(quantizer.model.model)
    paired.graph.sort()  # it appends the pairs
    common.ShapeInferencePass()(paired)
    return paired


def _ranges_without_overflow(nodes: Sequence[ir.Node]) -> dict[str, list[dict[str, Any]]]:
    """Ranges for every output channel of weights so that no two neighbours of one sign are more than _PAIR together.

    Processors without VNNI add the products of two neighbouring input channels with unsigned bytes in 16 bits.
    """
    found = {}
    for node in nodes:
        weight = constant(node.inputs[1])
        if weight is None or node.inputs[1] is None:
            continue
        axis = 1 if node.op_type == "MatMul" or not (node.op_type == "Conv" or attribute(node, "transB", 0)) else 0
        rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0)  # (outputs, inputs, ...)
        largest = np.abs(rows).reshape(len(rows), -1).max(1)
        if rows.shape[1] % 2:  # a depthwise filter, for one: which neighbours meet is not known
            pairs = 2 * largest
        else:
            first, second = rows[:, ::2], rows[:, 1::2]
            together = np.where(first * second > 0, np.abs(first + second), np.maximum(np.abs(first), np.abs(second)))
            pairs = together.reshape(len(rows), -1).max(1)
        ends = np.maximum(largest, pairs * (127 / _PAIR)).astype(np.float32)
        found[str(node.inputs[1].name)] = [{"axis": axis, "rmin": -end, "rmax": end} for end in ends]
    return found


def _leave_others_alone(graph: ir.Graph, quantised: set[str], placement: Placement) -> None:
    """Have only quantised layers read what was quantised for them; the quantiser lets every reader of a tensor."""
    for node in list(graph):
        source = _quantised_source(node)
        maker = None if source is None else source.producer()
        if source is None or (maker is not None and maker.name in quantised and maker.op_type in placement.outputs):
            continue  # a weight, or a layer's result, which is there in eight bits only
        for use in list(node.outputs[0].uses()):
            if use.node.name not in quantised:
                use.node.replace_input_with(use.idx, source)


def _quantised_source(node: ir.Node) -> ir.Value | None:
    """What a DequantizeLinear gives back, before it was quantised; None for another node, and for weights."""
    pair = node.inputs[0].producer() if node.op_type == _DQ and node.inputs[0] is not None else None
    return pair.inputs[0] if pair is not None and pair.op_type == _Q else None


def _approximate_gelus(graph: ir.Graph) -> None:
    """Compute those by tanh whose results are only rounded to steps that are much larger than what that is off."""
    for node in graph:
        if node.op_type != "Gelu" or node.domain != "":
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        steps = [constant(each.inputs[1]) for each in readers if each.op_type == _Q]
        if len(steps) == len(readers) and all(step is not None and step.min() >= _LEAST_STEP for step in steps):
            node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def _give_offsets(graph: ir.Graph) -> None:
    """Add next to nothing to the results of convolutions in eight bits that have no offset."""
    for node in list(graph):
        weight = producer(node.inputs[1], _DQ) if node.op_type == "Conv" else None
        if weight is None or (len(node.inputs) > 2 and node.inputs[2] is not None):
            continue
        numbers = constant(weight.inputs[0])
        if numbers is not None:
            offset = Builder(node).constant(f"{node.name}.offset", np.full(len(numbers), _NEXT_TO_NOTHING, np.float32))
            node.resize_inputs(3)
            node.replace_input_with(2, offset)


def _kept(decisions: Sequence[Decision]) -> tuple[KeptLayer, ...]:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in decisions:
        if not each.quantised:
            grouped[each.module or "model", each.reason].append(each.node.op_type)
    return tuple(KeptLayer(module, tuple(ops), reason) for (module, reason), ops in grouped.items())
