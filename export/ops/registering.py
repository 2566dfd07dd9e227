# SPDX-License-Identifier: Apache-2.0
"""Register the mixer ops' kernels as TensorRT quick-deploy plugins, from their data.

Ahead of time where TensorRT can (10.9 and later): the engine then holds the PTX and needs neither Python nor
Triton to run. Source: tensorrt.plugin's register, autotune, impl and aot_impl, which read the signatures of
what they are given; a plugin's signature is made here from its `Kernel`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .compiling import compile_kernel
from .kernel import FLOATS, Attributes, Kernel, Shapes, Type
from .mixer_op import DOMAIN, MixerOp

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt.plugin as trtp

_TENSORRT_TYPES: dict[Type, str] = {
    "float": "|".join(name.upper() for name in FLOATS),
    "fp32": "FP32",
    "i64": "INT64",
}
"""What an autotune combination calls the types; those joined by | change together."""
_ATTRIBUTES: dict[type[int] | type[float], Any] = {int: npt.NDArray[np.int32], float: npt.NDArray[np.float32]}
"""What attributes are annotated with. Each comes as an array of one number, of which TensorRT before 11.2 makes an int
or a float in a way that NumPy refuses from 2.4 on; arrays it leaves as they are.
"""


@dataclass(frozen=True)
class _Plugin:
    """The functions that tensorrt.plugin wants of one mixer op; `architecture` is asked when the kernel is compiled."""

    name: str
    kernel: Kernel
    architecture: Callable[[], int]

    def describe(self, *given: Any, **attributes: Any) -> trtp.TensorDesc:
        """The output's type and size, from descriptions of the inputs; sizes may be symbols."""
        import tensorrt as trt
        import tensorrt.plugin as trtp

        inputs: dict[str, trtp.TensorDesc] = dict(zip(self.kernel.inputs, given, strict=False))
        attributes |= dict(zip(self.kernel.attributes, given[len(inputs) :], strict=False))
        shapes = {name: each.shape_expr for name, each in inputs.items()}
        size = self.kernel.output_shape(shapes, self._numbers(attributes))
        dtype = next(iter(inputs.values())).dtype if self.kernel.output == "float" else trt.DataType.INT64
        return trtp.from_shape_expr(tuple(size), dtype)

    def autotune(self, *given: Any) -> list[trtp.AutoTuneCombination]:
        """The types it takes, all in the usual layout."""
        import tensorrt.plugin as trtp

        types = [_TENSORRT_TYPES[each] for each in (*self.kernel.inputs.values(), self.kernel.output)]
        return [trtp.AutoTuneCombination(", ".join(types), "LINEAR")]

    def ahead_of_time(self, *given: Any) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        """Name, PTX, launch and the batch, for the inputs' types and sizes."""
        import tensorrt.plugin as trtp

        tensors: Sequence[trtp.TensorDesc]
        tensors, attributes = self._split(given)
        shapes = {name: _sizes(each.shape_expr) for name, each in zip(self.kernel.inputs, tensors, strict=True)}
        self._check(shapes, attributes)
        compiled, launch = compile_kernel(
            self.kernel, shapes, attributes, _dtype(self.kernel, tensors), self.architecture()
        )
        batch = tensors[0].shape_expr[0]
        params = trtp.KernelLaunchParams()
        params.grid_x = trtp.cdiv(batch, launch.images)
        params.grid_y, params.grid_z = launch.programs
        params.block_x = compiled.threads
        params.shared_mem = compiled.shared_memory
        scalars = trtp.SymIntExprs(1)
        scalars[0] = trtp.SymInt32(batch)
        return compiled.name, compiled.ptx, params, scalars

    def just_in_time(self, *given: Any, stream: int) -> None:
        """Run Triton's own launch in TensorRT's stream."""
        import torch

        tensors: Sequence[trtp.Tensor]
        tensors, attributes = self._split(given)
        shapes = {name: tuple(each.shape) for name, each in zip(self.kernel.inputs, tensors, strict=True)}
        self._check(shapes, attributes)
        launch, batch = self.kernel.launch(shapes, attributes), tensors[0].shape[0]
        grid = (-(-batch // launch.images), *launch.programs)
        outputs: Sequence[trtp.Tensor] = given[len(self.kernel.inputs) + len(self.kernel.attributes)]
        pointers = [_Pointer(each.data_ptr, _torch_type(each.dtype)) for each in (*tensors, outputs[0])]
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):  # type: ignore[no-untyped-call]
            kernel = self.kernel.load()[grid]
            kernel(*pointers[:-1], batch, pointers[-1], **launch.constants, num_warps=launch.warps)

    def _split(self, given: Sequence[Any]) -> tuple[Sequence[Any], Attributes]:
        """Input tensors, and attributes by name."""
        count = len(self.kernel.inputs)
        return given[:count], self._numbers(dict(zip(self.kernel.attributes, given[count:], strict=False)))

    def _numbers(self, attributes: Mapping[str, npt.NDArray[Any]]) -> Attributes:
        """Attributes as numbers, from arrays of one."""
        return {name: self.kernel.attributes[name](value.item()) for name, value in attributes.items()}

    def _check(self, shapes: Shapes, attributes: Attributes) -> None:
        if refusal := self.kernel.refusal(shapes, attributes):
            raise InputError(f"{refusal}; --lowering {self.name}=portable goes around it.")


@dataclass(frozen=True)
class _Pointer:
    """A tensor of TensorRT's as Triton's launcher wants it; an array interface has no bfloat16."""

    address: int
    dtype: Any

    def data_ptr(self) -> int:
        return self.address


def register(op: MixerOp, architecture: Callable[[], int], *, lazy: bool = False) -> None:
    """Make one mixer op known to TensorRT's parser, under the namespace of our domain.

    Args:
        architecture: asked for each kernel that is compiled: compute capability, times ten, of the GPU that the
            engine is for.
        lazy: leave TensorRT's registry alone until a plugin is made; where there is no registry.

    Raises:
        InputError: the op has no kernel.
    """
    import tensorrt as trt
    import tensorrt.plugin as trtp

    if op.kernel is None:
        raise InputError(f"{op.op_type} has no kernel to register.")
    plugin, kernel = _Plugin(op.op_type, op.kernel, architecture), op.kernel
    plugin_id = f"{DOMAIN}::{op.op_type}"
    inputs = dict.fromkeys(kernel.inputs, trtp.TensorDesc)
    attributes = {name: _ATTRIBUTES[kind] for name, kind in kernel.attributes.items()}
    outputs = {"outputs": tuple[trtp.TensorDesc]}
    trtp.register(plugin_id, lazy_register=lazy)(_signed(plugin.describe, {**inputs, **attributes}, trtp.TensorDesc))
    trtp.autotune(plugin_id)(
        _signed(plugin.autotune, {**inputs, **attributes, **outputs}, list[trtp.AutoTuneCombination])
    )
    tensors = dict.fromkeys(kernel.inputs, trtp.Tensor)
    run = {**tensors, **attributes, "outputs": tuple[trtp.Tensor], "stream": int}
    trtp.impl(plugin_id)(_signed(plugin.just_in_time, run, None))
    if hasattr(trt, "QuickPluginCreationRequest"):
        made = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
        compiled = {**inputs, **attributes, **outputs, "tactic": int}
        trtp.aot_impl(plugin_id)(_signed(plugin.ahead_of_time, compiled, made))


def _signed(function: Callable[..., Any], annotations: dict[str, Any], returns: Any) -> Callable[..., Any]:
    """The function under a signature of named and annotated arguments."""

    def signed(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind, annotation=each) for name, each in annotations.items()]
    signed.__signature__ = inspect.Signature(arguments, return_annotation=returns)  # type: ignore[attr-defined]
    return signed


def _sizes(expressions: trtp.ShapeExprs) -> tuple[int, ...]:
    """Numbers of a symbolic size; -1 where it is not fixed, which only the batch may be."""
    return tuple(each.constant_value() if each.is_constant else -1 for each in expressions)


def _dtype(kernel: Kernel, tensors: Sequence[trtp.TensorDesc]) -> str:
    """What "float" is in these inputs, in Triton's names."""
    import tensorrt as trt

    names = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
    index = list(kernel.inputs.values()).index("float")
    return names[tensors[index].dtype]


def _torch_type(dtype: trt.DataType) -> Any:
    import tensorrt as trt
    import torch

    types = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT64: torch.int64,
    }
    return types[dtype]
