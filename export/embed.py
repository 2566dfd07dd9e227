# SPDX-License-Identifier: Apache-2.0
"""An .onnx file out of a graph and its weights, piece by piece: protobuf would hold all of them twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of the fields in onnx.proto: of a graph in the model, of a weight in the graph, of its bytes."""
_LENGTH_DELIMITED = 2


def embedded_pieces(graph: bytes, weights: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """The serialised model with the named weights inside, in order, as protobuf itself would write it.

    Args:
        graph: a serialised model; its initializers of those names are external.
    """
    model = onnx.ModelProto.FromString(graph)
    before, after = _around(model.graph, _INITIALIZER)
    heads = [_head(tensor, weights) for tensor in model.graph.initializer]
    length = len(before) + len(after)
    for head, array in heads:
        length += len(head) + (0 if array is None else array.nbytes)
    first, last = _around(model, _GRAPH)
    yield from (first, _key(_GRAPH, length), before)
    for head, array in heads:
        yield head
        if array is not None:
            yield content(array)
    yield from (after, last)


def content(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order; copied only where it is not."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def _head(tensor: onnx.TensorProto, weights: Mapping[str, NDArray[Any]]) -> tuple[bytes, NDArray[Any] | None]:
    """All of a tensor's field in the graph up to the bytes of its weight, and the weight; None if it is in there."""
    array = weights.get(tensor.name)
    if array is None:
        whole = tensor.SerializeToString()
        return _key(_INITIALIZER, len(whole)) + whole, None
    inside = onnx.TensorProto()
    inside.CopyFrom(tensor)
    inside.ClearField("external_data")
    inside.ClearField("data_location")
    before = inside.SerializeToString() + _key(_RAW_DATA, array.nbytes)
    return _key(_INITIALIZER, len(before) + array.nbytes) + before, array


def _around(message: Message, number: int) -> tuple[bytes, bytes]:
    """The serialised fields of a message before and after the one of that number."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for each in message.DESCRIPTOR.fields:
        if each.number >= number:
            before.ClearField(each.name)
        if each.number <= number:
            after.ClearField(each.name)
    return before.SerializeToString(), after.SerializeToString()


def _key(number: int, length: int) -> bytes:
    """What stands before the content of a field: its number and kind, and the length."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits to a byte, the lowest first; the high bit says that more follow."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)
