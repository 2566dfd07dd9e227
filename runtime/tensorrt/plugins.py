# SPDX-License-Identifier: Apache-2.0
"""Make mixer ops known to TensorRT as plugins, once in a process, for whichever GPU an engine is built next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from ...errors import InputError
from ...export.ops.catalog import find
from ...export.ops.compiling import ARCHITECTURES, check_compiler
from ...export.ops.mixer_op import MixerOp
from ...export.ops.registering import register
from .options import EngineOptions

_ARCHITECTURES: dict[str, int] = {}
"""What the kernel of each registered op is compiled for, by the op's name. TensorRT's registry lives as long as the
process and takes a plugin once, so that the plugin looks here when it is compiled.
"""
_LOCK = threading.Lock()


def kernel_architecture(options: EngineOptions, architecture: int) -> int:
    """What kernels are compiled for, so that they run wherever the engine does: the oldest GPU that they can run on,
    whose PTX all later ones take, where the engine is for others, too.

    Args:
        architecture: compute capability, times ten, of the GPU that builds the engine.
    """
    return ARCHITECTURES[0] if options.hardware_compatible == "ampere_plus" else architecture


def register_plugins(names: Sequence[str], architecture: int) -> None:
    """Register mixer ops with TensorRT, and have their kernels compiled for that GPU from now on.

    An op without a kernel is left to its function body. While engines are being built, nobody but the builder may ask
    for another architecture; a TensorRT whose plugins are compiled when they run does not look at it.

    Args:
        names: of mixer ops.
        architecture: compute capability, times ten.

    Raises:
        InputError: there is no such op, or no kernel can be compiled for that GPU.
        MissingDependencyError: Triton is not installed.
    """
    ops = [op for op in map(_op, names) if op.kernel is not None]
    if not ops:
        return
    check_compiler(architecture)
    with _LOCK:
        for op in ops:
            if op.op_type not in _ARCHITECTURES:
                register(op, partial(_ARCHITECTURES.__getitem__, op.op_type))
            _ARCHITECTURES[op.op_type] = architecture


def _op(name: str) -> MixerOp:
    op = find(name)
    if op is None:
        raise InputError(f"no mixer op is called {name}.")
    return op
