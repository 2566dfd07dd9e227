# SPDX-License-Identifier: Apache-2.0
"""Where a server listens, as a user writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import InputError

Protocol = Literal["grpc", "http"]
AnyProtocol = Literal["auto", "grpc", "http"]
PROTOCOLS: tuple[AnyProtocol, ...] = get_args(AnyProtocol)
HTTP_PORT = 8000
"""Triton's own; gRPC has 8001."""
TITLES: dict[Protocol, str] = {"grpc": "gRPC", "http": "HTTP"}
_SCHEMES: dict[str, tuple[Protocol, bool]] = {
    "http": ("http", False),
    "https": ("http", True),
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
}
_STANDARD_PORTS = {"http": 80, "https": 443, "grpcs": 443}
_URL = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s/@:\[\]]+)(?::(?P<port>\d{1,5}))?(?P<path>/\S*)?"
)


@dataclass(frozen=True)
class Address:
    """A server as tritonclient takes it.

    Attributes:
        target: HOST:PORT, with HTTP also the path before the server's own, if there is one.
        tls: whether the connection is encrypted.
    """

    target: str
    protocol: Protocol
    tls: bool = False

    @property
    def title(self) -> str:
        """The protocol as it is written in a sentence."""
        return TITLES[self.protocol]


def parse_address(url: str, protocol: AnyProtocol = "auto") -> Address:
    """HOST:PORT, or SCHEME://HOST[:PORT] with the scheme http, https, grpc or grpcs, whose s asks for TLS.

    Without a scheme and with the protocol auto, the port 8000 is HTTP and any other gRPC.

    Raises:
        InputError: it is neither, or the scheme is another protocol's.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"the protocol is auto, grpc or http; got {protocol!r}.")
    found = _URL.fullmatch(url)
    scheme = found["scheme"] if found else None
    if found is None or (scheme and scheme not in _SCHEMES):
        raise InputError(
            f"a server's address is HOST:PORT, or http://, https://, grpc:// or grpcs:// and it; got {url}."
        )
    port = int(found["port"] or _STANDARD_PORTS.get(scheme or "", 0))
    if not 1 <= port <= 65535:
        raise InputError(f"{url} has no port from 1 to 65535; Triton's are 8000 for HTTP and 8001 for gRPC.")
    if scheme:
        chosen, tls = _SCHEMES[scheme]
    else:
        chosen, tls = ("http" if port == HTTP_PORT else "grpc"), False
    if protocol not in ("auto", chosen) and scheme:
        raise InputError(f"{url} is an address for {TITLES[chosen]}; the protocol given with it is {protocol}.")
    chosen = chosen if protocol == "auto" else protocol
    path = (found["path"] or "").rstrip("/")
    if path and chosen == "grpc":
        raise InputError(f"{url} has a path, {path}, which gRPC has no place for; give HOST:PORT.")
    return Address(f"{found['host']}:{port}{path}", chosen, tls)
