# SPDX-License-Identifier: Apache-2.0
"""Run a mixer op's Triton kernel in Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from metaformer_export.export.ops.kernel import Attributes, Kernel
from metaformer_export.export.ops.running import run

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@cache
def _interpreted(module: str, name: str) -> Any:
    """The kernel of a module, loaded a second time with the interpreter in place of the compiler."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    with patch.dict(os.environ, {"TRITON_INTERPRET": "1"}), patch.dict(sys.modules, {module: copy}):
        spec.loader.exec_module(copy)
    return getattr(copy, name)


@contextmanager
def _whole_language() -> Iterator[None]:
    """The interpreter runs Triton's own library as well, and multiplies bfloat16, which it keeps as integers."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    def call(function: Any, *args: Any, **named: Any) -> Any:
        scope = interpreter._patch_lang(function.fn)
        try:
            return interpreter.InterpretedFunction(function.fn).rewrite()(*args, **named)
        finally:
            scope.restore()

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, widened(a), widened(b), *others)

    dot = interpreter.InterpreterBuilder.create_dot
    with (
        patch.object(JITFunction, "__call__", call),
        patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot),
    ):
        yield


def interpret(kernel: Kernel, inputs: tuple[torch.Tensor, ...], attributes: Attributes) -> torch.Tensor:
    """The kernel's output on CPU tensors. `Kernel.load` must return a function of the op's kernel.py by its name."""
    function = kernel.load()
    name = getattr(function, "__name__", None) or function.fn.__name__
    with patch.dict(os.environ, {"TRITON_INTERPRET": "1"}), _whole_language():
        return run(kernel, inputs, attributes, function=_interpreted(function.fn.__module__, name))
