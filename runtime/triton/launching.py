# SPDX-License-Identifier: Apache-2.0
"""How a tritonserver is started: which program, with which arguments, on which ports."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from .needs import Needs

PROGRAM = "tritonserver"
_INSTALLED = Path("/opt/tritonserver/bin/tritonserver")
"""Where NVIDIA's containers have it."""
_CACHE_BYTES = 64 << 20
"""For answers: a thousand logits are 4 kB."""
_OURS = ("--http-port", "--http-address", "--grpc-port", "--grpc-address", "--metrics-port", "--metrics-address")
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens on all addresses of this machine is reached from it."""


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, and what else it is told.

    Attributes:
        poll_seconds: how often the server looks for changes in the repository; None is never.
        extra: more arguments of tritonserver's.

    Raises:
        InputError: two ports are the same, or `extra` has what is an option here.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    poll_seconds: int | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({self.http_port, self.grpc_port, self.metrics_port}) < 3:
            raise InputError("--http-port, --grpc-port and --metrics-port must differ.")
        for each in self.extra:
            if (name := each.partition("=")[0]) in _OURS:
                raise InputError(f"{name} goes before --: --host, --http-port, --grpc-port and --metrics-port say it.")
        if self.extra and not self.extra[0].startswith("-"):
            raise InputError(
                f"what follows -- is for tritonserver, whose arguments start with --; got {self.extra[0]}."
            )

    @property
    def http(self) -> str:
        """HOST:PORT for a client on this machine."""
        return address(_ANY.get(self.host, self.host), self.http_port)

    @property
    def grpc(self) -> str:
        """HOST:PORT for a client on this machine."""
        return address(_ANY.get(self.host, self.host), self.grpc_port)

    @property
    def metrics(self) -> str:
        """HOST:PORT for a client on this machine."""
        return address(_ANY.get(self.host, self.host), self.metrics_port)


def address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_server(given: Path | None) -> Path | None:
    """The tritonserver of this machine, None if there is none.

    Raises:
        InputError: the given one cannot be run.
    """
    if given is not None:
        if not (given.is_file() and os.access(given, os.X_OK)):
            raise InputError(f"--server {given} is no program; give the path of a tritonserver.")
        return given.absolute()
    found = shutil.which(PROGRAM) or shutil.which(_INSTALLED)
    return None if found is None else Path(found)


def model_arguments(repository: str, needs: Needs, options: ServerOptions) -> list[str]:
    """Arguments that say which models and how, wherever the server runs."""
    arguments = [f"--model-repository={repository}"]
    if options.poll_seconds is not None:
        arguments += ["--model-control-mode=poll", f"--repository-poll-secs={options.poll_seconds}"]
    if needs.response_cache and not any(each.startswith("--cache-config") for each in options.extra):
        arguments.append(f"--cache-config=local,size={_CACHE_BYTES}")
    if needs.version_compatible:
        arguments.append("--backend-config=tensorrt,version-compatible=true")
    return [*arguments, *options.extra]


def command_line(server: Path, repository: Path, needs: Needs, options: ServerOptions) -> list[str]:
    """The command that starts a server of this machine.

    A model that fails to load does not end it, since it can then be asked for the reason of every such model.
    """
    listening = [
        f"--{service}-{what}={value}"
        for service, port in (
            ("http", options.http_port),
            ("grpc", options.grpc_port),
            ("metrics", options.metrics_port),
        )
        for what, value in (("address", options.host), ("port", port))
    ]
    models = model_arguments(str(repository.absolute()), needs, options)
    return [str(server), "--exit-on-error=false", *listening, *models]


def check_ports(options: ServerOptions) -> None:
    """InputError if something else listens on a port, or the host is not of this machine."""
    named = {"--http-port": options.http_port, "--grpc-port": options.grpc_port, "--metrics-port": options.metrics_port}
    for option, port in named.items():
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(options.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as tried:
                # As a server does: a port whose last connections are still being closed is free.
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(target)
                tried.listen(1)
        except OSError as error:
            raise InputError(
                f"a server cannot listen on {address(options.host, port)} ({error.strerror}); give another {option}, "
                "or --host."
            ) from error
