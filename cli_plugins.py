# SPDX-License-Identifier: Apache-2.0
"""metaformer-export plugins: what the mixer ops' GPU kernels need, compiled without a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .console import ConsoleProgress
from .errors import InputError

if TYPE_CHECKING:
    from .export.ops.surveying import Job, Outcome, Survey


@click.command("plugins", short_help="Compile the mixer ops' GPU kernels; no GPU needed.")
@click.option("--arch", metavar="N,N,...", help="Compute capabilities, times ten. [default: 80,86,89,90,100]")
@click.option("--op", "ops", multiple=True, metavar="NAME", help="Mixer op; may be repeated. [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def plugins_command(arch: str | None, ops: tuple[str, ...], as_json: bool, debug: bool) -> int:
    """Compile the kernels of the TensorRT plugins ahead of time, at every size
    and type that the models run them at, and say what they need. The GPUs
    need not be here.

    All of it takes many minutes; what is compiled already is in Triton's
    cache. Exit code 1 if a kernel does not compile, or needs more shared
    memory than its GPU has.

    \b
    Example:
      metaformer-export plugins --arch 80,90 --op GlobalFilter
    """
    del debug  # main looks for it, whichever command it follows
    progress = ConsoleProgress()
    with progress.stage("start"):
        from .export.ops.sizes import all_uses
        from .export.ops.surveying import compile_all, survey
        from .runtime.threads import available_threads
    found = survey(all_uses(), _ops(ops), _architectures(arch))
    with progress.count("compile", len(found.jobs), unit="kernels") as told:
        outcomes = compile_all(found.jobs, available_threads(), told)
    failed = [outcome for outcome in outcomes if outcome.failure]
    if as_json:
        click.echo(json.dumps(_facts(found, outcomes), indent=2))
    else:
        _print(found, outcomes)
    for outcome in failed:
        click.echo(f"metaformer-export: {_name(outcome.job)} cannot run: {outcome.failure}", err=True)
    return 1 if failed else 0


def _architectures(text: str | None) -> list[int]:
    """Each once; InputError for one that kernels are not compiled for."""
    from .export.ops.compiling import ARCHITECTURES

    if text is None:
        return list(ARCHITECTURES)
    known = {str(each): each for each in ARCHITECTURES}
    asked = [each.strip() for each in text.split(",")]
    if unknown := [each for each in asked if each not in known]:
        raise InputError(f"--arch takes any of {','.join(known)}; got {unknown[0]!r}.")
    return [known[each] for each in dict.fromkeys(asked)]


def _ops(asked: Sequence[str]) -> list[str]:
    """Names of ops with a kernel; InputError for one that has none."""
    from .export.ops.catalog import OPS

    able = [op.op_type for op in OPS if op.kernel is not None]
    if unknown := [name for name in asked if name not in able]:
        raise InputError(f"--op takes a mixer op with a kernel, {', '.join(able)}; got {unknown[0]!r}.")
    return list(asked or able)


def _print(found: Survey, outcomes: Sequence[Outcome]) -> None:
    click.echo(f"{'op':19s}{'size':11s}{'type':5s}{'GPU':7s}registers shared KiB spills B PTX kB")
    for outcome in outcomes:
        job, needs = outcome.job, outcome.needs
        start = f"{job.use.op_type:19s}{job.use.size:11s}{job.dtype:5s}{f'sm_{job.architecture}':7s}"
        if needs is None:
            click.echo(f"{start}does not compile")
            continue
        shared = f"{needs.shared_memory / 1024:.1f}"
        click.echo(f"{start}{needs.registers:9d}{shared:>11s}{needs.spills:9d}{needs.ptx / 1e3:7.0f}")
    for use, reason in found.refused:
        click.echo(f"note: no kernel for {use.op_type} {use.size}: {reason}.", err=True)


def _name(job: Job) -> str:
    return f"{job.use.op_type} {job.use.size} {job.dtype} on sm_{job.architecture}"


def _facts(found: Survey, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    kernels = [
        {
            **asdict(outcome.job.use),
            "type": outcome.job.dtype,
            "architecture": outcome.job.architecture,
            "needs": None if outcome.needs is None else asdict(outcome.needs),
            "failure": outcome.failure,
        }
        for outcome in outcomes
    ]
    return {"kernels": kernels, "refused": [{**asdict(use), "reason": reason} for use, reason in found.refused]}
