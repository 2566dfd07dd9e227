# SPDX-License-Identifier: Apache-2.0
"""What the mixer ops' kernels need of a GPU, at every size and type that the families run them at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ...errors import MissingDependencyError
from .catalog import OPS, find
from .compiling import compile_kernel, resources
from .kernel import FLOATS, Kernel
from .mixer_op import MixerOp
from .processes import each_in_a_process
from .use import Use

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that one program may have, by architecture.

Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", maximum amount of shared memory
per thread block.
"""
_SAID = 300
"""Last characters of a compiler's message that are kept; what is wrong stands at its end."""


@dataclass(frozen=True)
class Job:
    """A kernel to compile: `dtype` is what "float" tensors are, `architecture` the compute capability times ten."""

    use: Use
    dtype: str
    architecture: int


@dataclass(frozen=True)
class Survey:
    """Kernels to compile, and sizes that the kernels say they cannot run at, with the reason."""

    jobs: tuple[Job, ...]
    refused: tuple[tuple[Use, str], ...]


@dataclass(frozen=True)
class Needs:
    """What a compiled kernel takes.

    Attributes:
        parameters: PTX types, in order.
        threads: of one program.
        registers: of one thread.
        shared_memory: bytes of one program.
        spills: bytes that one thread puts into memory for want of registers, and bytes that it takes back, in all.
        ptx: bytes of its text.
    """

    parameters: tuple[str, ...]
    threads: int
    registers: int
    shared_memory: int
    spills: int
    ptx: int


@dataclass(frozen=True)
class Outcome:
    """What a kernel needs; None, and what the compiler said, if it does not compile."""

    job: Job
    needs: Needs | None
    error: str = ""

    @property
    def failure(self) -> str:
        """Why the kernel cannot run on that architecture; "" if it can."""
        limit = SHARED_MEMORY[self.job.architecture]
        if self.needs is None or self.needs.shared_memory <= limit:
            return self.error
        return f"it needs {self.needs.shared_memory / 1024:g} KiB of shared memory, and the GPU has {limit // 1024} KiB"


def survey(uses: Sequence[Use], ops: Collection[str], architectures: Collection[int]) -> Survey:
    """Those of the uses that are of these ops, op by op, in every type and for every architecture."""
    jobs: list[Job] = []
    refused = []
    for op in OPS:
        if op.kernel is None or op.op_type not in ops:
            continue
        for use in uses:
            if use.op_type != op.op_type:
                continue
            if reason := op.kernel.refusal(use.shapes, use.attributes):
                refused.append((use, reason))
            else:
                jobs += (Job(use, dtype, each) for dtype in _dtypes(op, op.kernel) for each in architectures)
    return Survey(tuple(jobs), tuple(refused))


def compile_all(jobs: Sequence[Job], workers: int, told: Callable[[int], None] = lambda done: None) -> list[Outcome]:
    """Compile in that many processes; the outcomes are in the order of the jobs.

    Args:
        told: of each that is done.

    Raises:
        MissingDependencyError: Triton is not installed.
    """
    outcomes = {}
    for place, outcome in each_in_a_process(compile_one, jobs, workers):
        outcomes[place] = outcome or Outcome(jobs[place], None, "the compiler crashed")
        told(1)
    return [outcomes[place] for place in range(len(jobs))]


def compile_one(job: Job) -> Outcome:
    """Compile one kernel and let ptxas say what it takes.

    Raises:
        MissingDependencyError: Triton is not installed.
    """
    op = find(job.use.op_type)
    if op is None or op.kernel is None:
        return Outcome(job, None, "it has no kernel")
    try:
        compiled, _ = compile_kernel(op.kernel, job.use.shapes, job.use.attributes, job.dtype, job.architecture)
        used = resources(compiled)
    except MissingDependencyError:
        raise
    except Exception as error:  # a compiler's errors have no type in common, and each of them is an answer
        return Outcome(job, None, f"{type(error).__name__}: {' '.join(str(error).split())[-_SAID:]}")
    spills = used.spill_stores + used.spill_loads
    needs = Needs(
        compiled.parameters, compiled.threads, used.registers, compiled.shared_memory, spills, len(compiled.ptx)
    )
    return Outcome(job, needs)


def _dtypes(op: MixerOp, kernel: Kernel) -> tuple[str, ...]:
    """Types that its "float" tensors have in graphs of any precision; one where it stays in float32, or has none."""
    stays = bool(op.float32) and not op.float32_inside
    return FLOATS[:1] if stays or "float" not in (*kernel.inputs.values(), kernel.output) else FLOATS
