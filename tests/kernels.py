# SPDX-License-Identifier: Apache-2.0
"""Run a mixer op's Triton kernel in Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from typing import Any
from unittest.mock import patch

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


def interpret(kernel: Kernel, inputs: tuple[torch.Tensor, ...], attributes: Attributes) -> torch.Tensor:
    """The kernel's output on CPU tensors. `Kernel.load` must return a function of the op's kernel.py by its name."""
    function = kernel.load()
    name = getattr(function, "__name__", None) or function.fn.__name__
    with patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        return run(kernel, inputs, attributes, function=_interpreted(function.fn.__module__, name))
