# SPDX-License-Identifier: Apache-2.0
"""Compile a mixer op's kernel for a GPU architecture, without a GPU.

Source: Triton's triton.compile with an explicit target; the PTX calling convention of TensorRT's
ahead-of-time plugins (pointers of the inputs, scalars, pointers of the outputs).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import InputError, LoweringError, MissingDependencyError
from .kernel import Attributes, Kernel, Launch, Shapes

ARCHITECTURES = (80, 86, 89, 90, 100)
"""Compute capabilities, times ten: A100, A10 and RTX 30, L4 and RTX 40, H100 and H200, B200."""
_WARP = 32
_PTX_VERSIONS = {80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 100: 87, 103: 88, 110: 90, 120: 87, 121: 88}
"""PTX version, times ten, by architecture: what its first drivers load, and for older ones those of CUDA 12.0."""
_BLACKWELL = 100
_ARCHITECTURE_LOCKED = 90
"""From here on Triton compiles for one architecture alone, and ptxas has an "a" in its name."""
_ALIGNMENT = 16
"""Bytes; TensorRT and PyTorch align every tensor to 256."""
_PARAMETERS = re.compile(r"\.visible \.entry \w+\((?P<list>[^)]*)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.(?P<type>\w+)")
_TARGET = re.compile(r"'(sm_\w+)'")
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SPILLED = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")


@dataclass(frozen=True)
class Compiled:
    """A kernel as PTX.

    Attributes:
        parameters: PTX types in order, "u64" for a pointer and "u32" for the batch.
        threads: of one program.
        shared_memory: bytes of one program.
    """

    name: str
    ptx: str
    architecture: int
    parameters: tuple[str, ...]
    threads: int
    shared_memory: int


@dataclass(frozen=True)
class Resources:
    """What ptxas says a kernel needs of the GPU; spills in bytes of a thread."""

    registers: int
    spill_stores: int
    spill_loads: int


def compile_kernel(
    kernel: Kernel, shapes: Shapes, attributes: Attributes, dtype: str, architecture: int
) -> tuple[Compiled, Launch]:
    """The kernel for inputs of those sizes.

    Args:
        dtype: what "float" tensors are: "fp32", "fp16" or "bf16".
        architecture: compute capability times ten.

    Raises:
        InputError: the installed Triton compiles nothing for the architecture.
        MissingDependencyError: Triton is not installed, or has no ptxas.
        LoweringError: the kernel needs scratch memory, which TensorRT does not give it.
    """
    check_compiler(architecture)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch, function = kernel.launch(shapes, attributes), kernel.load()
    source = ASTSource(function, _signature(kernel, function, launch, dtype), dict(launch.constants), _aligned(kernel))
    # Fused products are on unless a later Triton turns them off.
    options = {"num_warps": launch.warps, "ptx_version": _PTX_VERSIONS[architecture], "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, _WARP), options=options)
    scratch = {name: getattr(made.metadata, f"{name}_scratch_size", 0) for name in ("global", "profile")}
    if any(scratch.values()):
        raise LoweringError(f"{made.metadata.name} needs scratch memory ({scratch}), which TensorRT does not give it.")
    ptx = without_scratch(made.asm["ptx"], len(kernel.inputs) + 2)
    compiled = Compiled(
        made.metadata.name, ptx, architecture, parameters(ptx), launch.warps * _WARP, made.metadata.shared
    )
    return compiled, launch


def can_compile_for(architecture: int) -> bool:
    """Whether the installed Triton compiles kernels for a GPU; where none is installed, whether another one does.

    Args:
        architecture: compute capability times ten.
    """
    try:
        ptxas = _ptxas(architecture)
    except ImportError:
        return architecture in _PTX_VERSIONS
    except MissingDependencyError:
        return False
    locked = "a" if architecture >= _ARCHITECTURE_LOCKED else ""
    return architecture in _PTX_VERSIONS and f"sm_{architecture}{locked}" in _targets(ptxas)


def check_compiler(architecture: int) -> None:
    """Whether kernels can be compiled for a GPU, before somebody waits for it.

    Args:
        architecture: compute capability times ten.

    Raises:
        InputError: the installed Triton compiles nothing for it.
        MissingDependencyError: Triton is not installed, or has no ptxas.
    """
    try:
        import triton
    except ImportError as error:
        raise MissingDependencyError('Triton is not installed; pip install "metaformer-export[tensorrt]".') from error
    _ptxas(architecture)
    if not can_compile_for(architecture):
        able = ", ".join(f"{each / 10:.1f}" for each in _PTX_VERSIONS if can_compile_for(each))
        raise InputError(
            f"no kernel can be compiled for compute capability {architecture / 10:.1f}: Triton {triton.__version__} "
            f"takes {able}; --no-plugins goes around the kernels."
        )


def parameters(ptx: str) -> tuple[str, ...]:
    """PTX types of a kernel's parameters."""
    found = _PARAMETERS.search(ptx)
    return () if found is None else tuple(_PARAMETER.findall(found["list"]))


def without_scratch(ptx: str, count: int) -> str:
    """PTX with its first `count` parameters only: Triton adds pointers to scratch memory, which nobody passes.

    Raises:
        LoweringError: the kernel reads one of the others.
    """
    found = _PARAMETERS.search(ptx)
    if found is None:
        raise LoweringError("the PTX has no kernel")
    kept = found["list"].split(",")
    kept, dropped = kept[:count], kept[count:]
    start, end = found.span("list")
    rest = ptx[:start] + ",".join(kept) + "\n" + ptx[end:]
    for each in dropped:
        name = re.findall(r"\w+_param_\d+", each)[0]
        if re.search(rf"\b{name}\b", rest):
            raise LoweringError(f"the kernel reads {name}, which TensorRT does not pass")
    return rest


def resources(compiled: Compiled) -> Resources:
    """Registers and spills, by the ptxas that comes with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.ptx, encoding="utf-8")
        target = re.findall(r"\.target (\w+)", compiled.ptx)[0]
        command = [_ptxas(compiled.architecture), "-v", f"--gpu-name={target}", str(ptx), "-o", str(ptx) + ".cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    used, spilled = _USED.search(said.stderr), _SPILLED.search(said.stderr)
    if said.returncode or used is None or spilled is None:
        raise LoweringError(
            f"ptxas refuses {compiled.name} for sm_{compiled.architecture}: {said.stderr.strip()[:300]}"
        )
    return Resources(int(used["registers"]), int(spilled["stores"]), int(spilled["loads"]))


def _ptxas(architecture: int) -> str:
    """Path of the assembler that Triton itself calls; it comes with two. MissingDependencyError if it has none."""
    from triton import knobs

    try:
        tool = knobs.nvidia.ptxas_blackwell if architecture >= _BLACKWELL else knobs.nvidia.ptxas
    except RuntimeError as error:  # Triton's word for a file that is not there or does not run
        variable = "TRITON_PTXAS_BLACKWELL_PATH" if architecture >= _BLACKWELL else "TRITON_PTXAS_PATH"
        raise MissingDependencyError(
            f"Triton finds no assembler ({error}); set {variable} to CUDA's ptxas, or give --no-plugins."
        ) from error
    return str(tool.path)


@cache
def _targets(ptxas: str) -> frozenset[str]:
    """Names of the architectures that an assembler takes: "sm_80", "sm_90a"."""
    said = subprocess.run([ptxas, "--help"], capture_output=True, text=True, check=False)
    return frozenset(_TARGET.findall(said.stdout))


def _signature(kernel: Kernel, function: Any, launch: Launch, dtype: str) -> dict[str, str]:
    """Triton's type of every argument of the kernel, in their order."""
    types = [f"*{dtype if each == 'float' else each}" for each in (*kernel.inputs.values(), kernel.output)]
    types.insert(len(kernel.inputs), "i32")
    names = list(function.arg_names)
    return dict(zip(names, types, strict=False)) | dict.fromkeys(launch.constants, "constexpr")


def _aligned(kernel: Kernel) -> dict[tuple[int], list[list[str | int]]]:
    """Pointers are multiples of 16, so that loads are wide."""
    pointers = [*range(len(kernel.inputs)), len(kernel.inputs) + 1]
    return {(index,): [["tt.divisibility", _ALIGNMENT]] for index in pointers}
