# SPDX-License-Identifier: Apache-2.0
"""A mixer op's GPU kernel, as data: what it takes, how it is launched, what it leaves.

The kernel itself is a function in the Triton language, in the op's kernel.py, which is imported only
when it is run or compiled. Its arguments are, in this order: a pointer for each input, the batch
(int32), a pointer for the output, and the constants of a `Launch` (tl.constexpr). All tensors are
contiguous; all sizes but the batch are known when it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Type = Literal["float", "fp32", "i64"]
"""Of a tensor: "float" is float32, float16 or bfloat16, the same for all such tensors of a node."""
FLOATS = ("fp32", "fp16", "bf16")
"""What "float" may be, in Triton's names."""
Attributes = Mapping[str, int | float]
Shapes = Mapping[str, Sequence[Any]]
"""Of each input, by its name; numbers, or symbols of them that know + int, * int and // int."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched for inputs of one size.

    Attributes:
        constants: the kernel's tl.constexpr arguments, by name.
        programs: of the grid, beside the batch: its second and third size.
        images: of the batch that one program computes; the grid's first size is ceil(batch / images).
        warps: of one program, 32 threads each.
    """

    constants: Mapping[str, int | float | bool]
    programs: tuple[int, int] = (1, 1)
    images: int = 1
    warps: int = 4


@dataclass(frozen=True)
class Kernel:
    """The kernel of one mixer op.

    Attributes:
        load: imports Triton and returns the kernel.
        inputs: types of the operator's inputs by name, in the order of the node.
        attributes: types of the operator's attributes by name.
        output: type of the operator's output.
        output_shape: its size, from the sizes of the inputs and the attributes.
        launch: the launch for inputs of the sizes given; it must not look at the batch, the first size of
            every input but weights.
        refusal: why it cannot run at the sizes given; "" if it can.
    """

    load: Callable[[], Any]
    inputs: Mapping[str, Type]
    attributes: Mapping[str, type[int] | type[float]]
    output: Type
    output_shape: Callable[[Shapes, Attributes], tuple[Any, ...]]
    launch: Callable[[Shapes, Attributes], Launch]
    refusal: Callable[[Shapes, Attributes], str] = field(default=lambda shapes, attributes: "")


def power_of_two(least: int, at_least: int = 1) -> int:
    """The smallest power of two that is neither below `least` nor below `at_least`; Triton's blocks have such sizes."""
    return max(1 << (least - 1).bit_length(), at_least)
