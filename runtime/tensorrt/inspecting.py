# SPDX-License-Identifier: Apache-2.0
"""What an engine really is, layer by layer, against what its ONNX file asks for.

Source: the engine inspector's JSON of an engine that was built with detailed profiling verbosity. A layer names the
ONNX nodes it computes in its "Metadata", as [ONNX Layer: name], and the type of each tensor in "Format/Datatype".
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ...errors import EngineError
from ...export.graph import module_of
from ...export.precision import computes_in, count_layers, group_of
from .engine import LOW, EngineReport, FallenBack

if TYPE_CHECKING:
    import tensorrt as trt

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES: tuple[tuple[str, str], ...] = (
    (r"\bBF16\b|BFloat16", "bf16"),
    (r"\bFP16\b|\bHalf\b|\bFloat16\b", "fp16"),
    (r"\bInt8\b|\bINT8\b", "int8"),
    (r"\bFP32\b|\bFloat\b|\bFloat32\b", "fp32"),
)
"""How the inspector writes types, in short and in sentences."""
_REFORMATS = re.compile(r"reformat", re.IGNORECASE)
_PLUGINS = re.compile(r"plugin", re.IGNORECASE)


@dataclass(frozen=True)
class _Layer:
    """One layer of the engine: the nodes it computes, and the float types at its borders."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    types: frozenset[str]


def information(engine: trt.ICudaEngine) -> str:
    """The inspector's JSON."""
    import tensorrt as trt

    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def examine(text: str, graph: ir.Graph) -> EngineReport:
    """Compare an engine with the graph it was built from.

    Args:
        text: the inspector's JSON.

    Raises:
        EngineError: it is no such JSON, or holds names only, as of an engine built without details.
    """
    layers, nodes = _layers(text), {str(node.name): node for node in graph}
    wanted = {name: precision for name, node in nodes.items() if (precision := computes_in(node))}
    got: dict[str, Counter[str]] = defaultdict(Counter)
    fallen = []
    for layer in layers:
        asked = {name: wanted[name] for name in layer.nodes if name in wanted}
        if not asked or not layer.types:
            continue
        computed = _computed(layer)
        for name in asked:
            got[group_of(nodes[name])][computed] += 1
        if computed == "fp32" and set(asked.values()) <= set(LOW):
            named = tuple(dict.fromkeys(module_of(nodes[name]) or "model" for name in asked))
            fallen.append(FallenBack(layer.name, named, next(iter(asked.values()))))
    return EngineReport(
        layers=len(layers),
        wanted=count_layers(graph),
        got={group: dict(counts) for group, counts in got.items()},
        fallen_back=tuple(fallen),
        reformats=sum(bool(_REFORMATS.search(f"{each.kind} {each.name}")) for each in layers),
        casts=sum(_only_casts(each, nodes) for each in layers),
        plugins=dict(Counter(_plugin_name(each, nodes) for each in layers if _PLUGINS.search(each.kind))),
    )


def _layers(text: str) -> list[_Layer]:
    try:
        content: Any = json.loads(text)
        found = content["Layers"]
        if any(isinstance(each, str) for each in found):
            raise EngineError("the engine holds names of layers only; build it with detailed profiling verbosity.")
        return [_layer(each) for each in found]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"TensorRT's inspector says nothing that can be read ({error}).") from error


def _layer(each: Mapping[str, Any]) -> _Layer:
    name = str(each["Name"])
    nodes = _NODE.findall(str(each.get("Metadata", ""))) or [part.strip() for part in name.split(" + ")]
    tensors = [*each.get("Inputs", []), *each.get("Outputs", [])]
    types = frozenset(filter(None, (_type(str(tensor.get("Format/Datatype", ""))) for tensor in tensors)))
    return _Layer(name, str(each.get("LayerType", "")), tuple(nodes), types)


def _type(text: str) -> str:
    """A float type or int8; "" for indices and flags."""
    return next((name for pattern, name in _TYPES if re.search(pattern, text)), "")


def _computed(layer: _Layer) -> str:
    """The narrowest type at a layer's borders: a fused layer that reads float16 has no float32 kernel for it."""
    return next(name for name in ("int8", "fp16", "bf16", "fp32") if name in layer.types)


def _only_casts(layer: _Layer, nodes: Mapping[str, ir.Node]) -> bool:
    named = [nodes[name].op_type for name in layer.nodes if name in nodes]
    return bool(named) and set(named) == {"Cast"}


def _plugin_name(layer: _Layer, nodes: Mapping[str, ir.Node]) -> str:
    """The operator that a plugin layer computes; the layer's kind where it names no node of ours."""
    return next((nodes[name].op_type for name in layer.nodes if name in nodes), layer.kind)
