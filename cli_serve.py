# SPDX-License-Identifier: Apache-2.0
"""metaformer-export serve: a Triton Inference Server on what was exported."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from .console import ConsoleProgress
from .errors import MissingDependencyError, ServerError

if TYPE_CHECKING:
    from .runtime.triton.answers import ModelState
    from .runtime.triton.launching import ServerOptions
    from .runtime.triton.needs import Needs

_PORT = click.IntRange(1, 65535)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("serve", short_help="Start a Triton Inference Server on an export.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("extra", metavar="[-- ARGUMENT...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--server",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The tritonserver to start. [default: that on the PATH, or /opt/tritonserver/bin/tritonserver]",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True, metavar="N")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, metavar="N")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, metavar="N")
@click.option("--poll", type=click.IntRange(1), metavar="S", help="Look for new and removed versions every S seconds.")
@click.option("--docker", is_flag=True, help="Print the docker commands, though there is a tritonserver here.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds that the models may take to load.",
)
@click.option("--json", "as_json", is_flag=True, help="Print where it listens, or the docker commands, as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show all that the server prints.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def serve_command(
    folder: Path,
    extra: tuple[str, ...],
    server: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    poll: int | None,
    docker: bool,
    timeout: float,
    as_json: bool,
    verbose: bool,
    debug: bool,
) -> int:
    """Serve the models in the output folder DIR, or in the model repository DIR,
    until Ctrl-C. What follows -- goes to tritonserver as it is.

    Without a tritonserver here it prints the docker command that serves the
    same from the container whose TensorRT the engine was built by.

    Exit code 0 when it was stopped, 1 if a model does not load or the server
    ends by itself, 3 if there is no tritonserver.

    \b
    Examples:
      metaformer-export serve build/hornet_t-fp16
      metaformer-export serve models --poll 10 -- --log-verbose=1
    """
    del debug  # main looks for it, whichever command it follows
    from .runtime.triton.launching import ServerOptions, check_ports, command_line, find_server
    from .runtime.triton.needs import find_repository, needs_of

    options = ServerOptions(host, http_port, grpc_port, metrics_port, poll, extra)
    repository = find_repository(folder)
    needs = needs_of(repository)
    program = None if docker else find_server(server)
    if program is None:
        _print_docker(repository, needs, options, as_json)
        if docker:
            return 0
        raise MissingDependencyError(
            "there is no tritonserver here, on the PATH or in /opt/tritonserver; the docker command above serves the "
            "same, or give one with --server PATH."
        )
    check_ports(options)
    return _serve(command_line(program, repository, needs, options), options, timeout, as_json, verbose)


def _serve(command: Sequence[str], options: ServerOptions, timeout: float, as_json: bool, verbose: bool) -> int:
    from .runtime.triton.server import started

    progress = ConsoleProgress()
    ready = False

    def told(line: str, is_error: bool) -> None:
        # What goes wrong before is summed up for each model.
        if verbose or (is_error and ready):
            progress.console.print(line, markup=False, soft_wrap=True)

    with _counted_signals() as signals, started(command, options.http, told, lambda: signals() > 1) as server:
        with progress.stage("load") as done:
            failed = server.wait_until_ready(timeout, lambda: signals() > 0)
            done("" if signals() else f"{len(failed)} models failed" if failed else "ready")
        if signals():
            raise KeyboardInterrupt
        for name, reason in failed.items():
            click.echo(f"metaformer-export: model {name} was not loaded: {reason}", err=True)
        if failed:
            raise ServerError("the server was stopped, since it cannot serve all models; --verbose shows its log.")
        ready = True
        _print_listening(server.models(), options, as_json)
        server.wait(lambda: signals() > 0)
    return 0


@contextlib.contextmanager
def _counted_signals() -> Iterator[Callable[[], int]]:
    """How many signals to end have come, instead of what they do by themselves: Ctrl-C, an end, a closed terminal."""
    count = 0

    def counted(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1

    # nohup has a closed terminal ignored, and so it stays.
    ending = [each for each in _ENDING if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, counted) for number in ending}
    try:
        yield lambda: count
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_listening(models: Sequence[ModelState], options: ServerOptions, as_json: bool) -> None:
    loaded = [each for each in models if each.ready]
    if as_json:
        facts = {
            "http": options.http,
            "grpc": options.grpc,
            "metrics": options.metrics,
            "models": [asdict(each) for each in loaded],
        }
        click.echo(json.dumps(facts, indent=2))
        return
    width = max([len("model"), *(len(each.name) for each in loaded)]) + 2
    click.echo(f"{'model':{width}s}{'version':>7s}  state")
    for each in loaded:
        click.echo(f"{each.name:{width}s}{each.version:>7s}  {each.state.lower()}")
    click.echo(
        f"listening on http://{options.http}, gRPC {options.grpc}, metrics http://{options.metrics}/metrics; "
        "Ctrl-C stops it"
    )


def _print_docker(repository: Path, needs: Needs, options: ServerOptions, as_json: bool) -> None:
    from .runtime.triton.docker import docker_commands

    commands = docker_commands(repository, needs, options)
    if as_json:
        click.echo(json.dumps(asdict(commands), indent=2))
        return
    for command in filter(None, (commands.build, commands.run)):
        click.echo(command)
