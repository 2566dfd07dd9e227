# SPDX-License-Identifier: Apache-2.0
"""Layers of an engine, as TensorRT's inspector tells of them in JSON.

Source: the engine inspector's JSON of an engine that was built with detailed profiling verbosity. A layer names the
ONNX nodes it computes in its "Metadata", as [ONNX Layer: name]. The type of a tensor is in "Format/Datatype" up to
TensorRT 10, in a sentence or a word, and in "Datatype" beside "Format" from TensorRT 11 on. Where sizes are dynamic and
the inspector was given no execution context, it is "N/A due to dynamic shapes"; what is left to read is then the type
of a layer's weights and the name of its kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import EngineError

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FOREIGN = re.compile(r"ForeignNode\[(.*)\]")
_BETWEEN = re.compile(r"\.\.\.| \+ ")
_COPY = "Reformatting CopyNode"
_KERNEL_NUMBER = re.compile(r"_myl\d+_\d+$")
"""What TensorRT's graph compiler appends to the name of the node that a layer begins with."""
_TYPE_KEYS = ("Datatype", "DataType", "Format/Datatype")
"""TensorRT 11's and 10's; "Format" alone is not read, its sentence says "INT8" of 64-bit integers as well."""
_TYPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"\bk?(?:{words})\b", re.IGNORECASE), name)
    for words, name in (
        ("bf16|bfloat16", "bf16"),
        ("fp16|half|float16", "fp16"),
        ("int8", "int8"),
        ("fp32|float|float32", "fp32"),
    )
)
"""How the inspector writes types, in short and in sentences."""
_OPERAND = "i8|bf16|f16|tf32|f32"
_MULTIPLIES_IN = re.compile(rf"_(?:{_OPERAND}){{2}}_({_OPERAND})(?:i32|bf16|f16|f32)_(?:{_OPERAND})")
"""The types of a kernel's inputs, then those of its products and sums, then that of its output."""
_KERNEL_TYPES = {"i8": "int8", "bf16": "bf16", "f16": "fp16", "tf32": "fp32", "f32": "fp32"}
_KERNEL_WORDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"int8|imma|i16832gemm|i8816gemm"), "int8"),
    (re.compile(r"bf16"), "bf16"),
    (re.compile(r"fp16|h(?:884|1688|16816)|hgemm|hmma"), "fp16"),
    (re.compile(r"(?:^|_)sgemm|scudnn"), "fp32"),
)
_IDLE = re.compile(r"reformat|no_?op|constant|signal|wait|shape_call", re.IGNORECASE)
_MULTIPLIES = re.compile(r"conv|gemm|matmul|matrixmultiply|fusion|fully|mha|attention|myelin|plugin", re.IGNORECASE)
_CONVERTS = re.compile(r"reformat|cast|convert", re.IGNORECASE)
_REFORMATS = re.compile(r"reformat", re.IGNORECASE)
_PLUGINS = re.compile(r"plugin", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        kind: TensorRT's word for what it is.
        nodes: names of the ONNX nodes it computes, as far as it says.
        read, written: float types and int8 at its borders; empty where the inspector does not say.
        kernel: the type its kernel multiplies in, by the kernel's name or that of the weights; "" where neither says.
        partial: it computes more nodes than it names.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    read: frozenset[str]
    written: frozenset[str]
    kernel: str = ""
    partial: bool = False

    @property
    def types(self) -> frozenset[str]:
        """Those at its borders."""
        return self.read | self.written

    @property
    def idle(self) -> bool:
        """Whether it computes nothing, whichever nodes it names."""
        return bool(_IDLE.fullmatch(self.kind))

    @property
    def multiplies(self) -> bool:
        """Whether layers of its kind hold the product of a convolution or of matrices."""
        return bool(self.kernel or _MULTIPLIES.search(self.kind))

    @property
    def reformats(self) -> bool:
        """Whether it only gives a tensor another layout or type."""
        return bool(_REFORMATS.search(f"{self.kind} {self.name}"))

    @property
    def converts(self) -> bool:
        """Whether it gives a tensor another type, if it computes nothing beside."""
        changes = bool(self.read and self.written) and self.read != self.written
        return changes and bool(_CONVERTS.search(f"{self.kind} {self.name}"))

    @property
    def is_plugin(self) -> bool:
        return bool(_PLUGINS.search(self.kind))


def read_layers(text: str) -> list[Layer]:
    """The layers of an engine, in its order.

    Args:
        text: the inspector's JSON.

    Raises:
        EngineError: it is no such JSON, or holds names only, as of an engine built without details.
    """
    try:
        content: Any = json.loads(text)
        found = content["Layers"]
        if any(isinstance(each, str) for each in found):
            raise EngineError("the engine holds names of layers only; build it with detailed profiling verbosity.")
        return [_layer(each) for each in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"TensorRT's inspector says nothing that can be read ({error}).") from error


def _layer(each: Mapping[str, Any]) -> Layer:
    name = str(each["Name"])
    nodes = _NODE.findall(str(each.get("Metadata", "")))
    return Layer(
        name=name,
        kind=str(each.get("LayerType", "")),
        nodes=tuple(nodes) or _nodes_in(name),
        read=_types_of(each, "Inputs"),
        written=_types_of(each, "Outputs"),
        kernel=_kernel(each),
        partial=not nodes and _FOREIGN.search(name) is not None,
    )


def _nodes_in(name: str) -> tuple[str, ...]:
    """Nodes that a layer without metadata is named after; a copy is named after its reader."""
    if name.startswith(_COPY):
        return ()
    inside = _FOREIGN.search(name)
    parts = _BETWEEN.split(inside.group(1)) if inside else name.split(" + ")
    return tuple(_KERNEL_NUMBER.sub("", part.strip()) for part in parts)


def _types_of(each: Mapping[str, Any], key: str) -> frozenset[str]:
    return frozenset(filter(None, (_tensor_type(tensor) for tensor in each.get(key) or ())))


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    """The first that the inspector says; "" for indices and flags, and where it says nothing."""
    return next(filter(None, (_type_named(str(tensor.get(key, ""))) for key in _TYPE_KEYS)), "")


def _type_named(text: str) -> str:
    return next((name for pattern, name in _TYPES if pattern.search(text)), "")


def _kernel(each: Mapping[str, Any]) -> str:
    """The type that a layer multiplies in, where its kernel's name or its weights tell."""
    tactic, weights = str(each.get("TacticName", "")), each.get("Weights")
    if structured := _MULTIPLIES_IN.search(tactic):
        return _KERNEL_TYPES[structured.group(1)]
    if not tactic.startswith("__myl") and (
        word := next((name for pattern, name in _KERNEL_WORDS if pattern.search(tactic)), "")
    ):
        return word
    return _type_named(str(weights.get("Type", ""))) if isinstance(weights, Mapping) and weights.get("Count") else ""
