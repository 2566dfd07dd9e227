# SPDX-License-Identifier: Apache-2.0
"""A server's address as users write it."""

from __future__ import annotations

from typing import Any

import pytest

from metaformer_export.errors import InputError
from metaformer_export.runtime.triton.address import Address, parse_address
from metaformer_export.runtime.triton.async_client import AsyncClient
from metaformer_export.runtime.triton.client import Client


@pytest.mark.parametrize(
    ("url", "protocol", "address"),
    [
        ("localhost:8000", "auto", Address("localhost:8000", "http")),
        ("localhost:8001", "auto", Address("localhost:8001", "grpc")),
        ("localhost:9000", "auto", Address("localhost:9000", "grpc")),
        ("localhost:8000", "grpc", Address("localhost:8000", "grpc")),
        ("[::1]:8001", "auto", Address("[::1]:8001", "grpc")),
        ("http://a.example", "auto", Address("a.example:80", "http")),
        ("https://a.example/triton/", "auto", Address("a.example:443/triton", "http", tls=True)),
        ("grpcs://a.example", "grpc", Address("a.example:443", "grpc", tls=True)),
        ("grpc://a.example:8000", "auto", Address("a.example:8000", "grpc")),
    ],
)
def test_an_address_says_the_protocol(url: str, protocol: Any, address: Address) -> None:
    assert parse_address(url, protocol) == address


@pytest.mark.parametrize(
    ("url", "protocol", "message"),
    [
        ("localhost", "auto", "localhost has no port"),
        ("localhost:70000", "auto", "has no port from 1 to 65535"),
        ("grpc://localhost", "auto", "has no port"),
        ("ftp://localhost:8000", "auto", "is HOST:PORT, or http://"),
        ("http://user@host:8000", "auto", "is HOST:PORT"),
        ("", "auto", "is HOST:PORT"),
        ("http://localhost:8000", "grpc", "is an address for HTTP; the protocol given with it is grpc"),
        ("localhost:8001/v2", "auto", "has a path, /v2, which gRPC has no place for"),
        ("localhost:8001", "tcp", "the protocol is auto, grpc or http; got 'tcp'"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url: str, protocol: Any, message: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(InputError) as caught:
            client(url, protocol=protocol)
        assert message in str(caught.value)
