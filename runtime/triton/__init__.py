# SPDX-License-Identifier: Apache-2.0
"""Served by a Triton Inference Server: the model repository, the server, the client, what Kubernetes needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .client import Client

__all__ = ["AsyncClient", "Client"]

_LAZY = {"AsyncClient": ".async_client", "Client": ".client"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
