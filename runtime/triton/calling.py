# SPDX-License-Identifier: Apache-2.0
"""tritonclient's four clients behind one face: gRPC and HTTP, each for threads and for asyncio.

They differ in how a timeout is given, in what an answer is made of, and in what they raise. Here every call either
returns plain data, or raises `Refused` where the server answered with an error, or ServerError where it did not answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import errorcode
from http.client import HTTPException
from os import strerror
from ssl import SSLError
from types import ModuleType
from typing import Any

import numpy.typing as npt

from ...errors import MissingDependencyError, ServerError
from .address import Address
from .answers import Refused, Signature, Tensor, one_line

AT_ONCE = 8
"""Requests under way at a time: enough to fill a batch on the server, few enough that none waits long."""
_NO_SERVER = "StatusCode.UNAVAILABLE"
_TOO_LATE = "StatusCode.DEADLINE_EXCEEDED"
_NO_TRITON = "StatusCode.UNIMPLEMENTED"
_CHAIN = re.compile(r"^.*; last error: \w+: \S+: ")
"""What gRPC puts before the reason: that it failed, and the address, which we have said."""


@dataclass(frozen=True)
class Calls:
    """A client of tritonclient's, and how it is called.

    Attributes:
        module: the client's, which has the class of an input.
        every: arguments of every call.
        data: further ones of a call that is answered with data.
        failures: what a call may raise.
    """

    client: Any
    module: ModuleType
    every: Mapping[str, float]
    data: Mapping[str, bool]
    failures: tuple[type[Exception], ...]

    def inputs(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The inputs of a request, as tritonclient takes them."""
        made = []
        for tensor in tensors:
            each = self.module.InferInput(tensor.name, list(tensor.data.shape), tensor.datatype)
            each.set_data_from_numpy(tensor.data)
            made.append(each)
        return made


def open_calls(address: Address, timeout: float) -> Calls:
    """For one thread; nothing is sent yet.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        if address.protocol == "grpc":
            import tritonclient.grpc as module
        else:
            import tritonclient.http as module
    except ImportError as error:
        raise _missing(error) from error
    if address.protocol == "grpc":
        return _grpc(module.InferenceServerClient(address.target, ssl=address.tls), module, timeout)
    from gevent import get_hub
    from gevent.ssl import create_default_context

    hub = get_hub()
    hub.NOT_ERROR = tuple({*hub.NOT_ERROR, KeyboardInterrupt})  # which it prints before it hands it on

    client = module.InferenceServerClient(
        address.target,
        concurrency=AT_ONCE,
        connection_timeout=timeout,
        network_timeout=timeout,
        ssl=address.tls,
        # Without a context it would not check the certificate.
        ssl_context_factory=create_default_context if address.tls else None,
    )
    return _http(client, module, (HTTPException,))


def open_async_calls(address: Address, timeout: float) -> Calls:
    """For the event loop that runs; nothing is sent yet.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        if address.protocol == "grpc":
            import tritonclient.grpc as inputs
            from tritonclient.grpc import aio as module
        else:
            import tritonclient.http as inputs
            from tritonclient.http import aio as module
    except ImportError as error:
        raise _missing(error) from error
    if address.protocol == "grpc":
        return _grpc(module.InferenceServerClient(address.target, ssl=address.tls), inputs, timeout)
    from aiohttp import ClientError

    # ssl_context True checks the certificate, as aiohttp does by itself.
    client = module.InferenceServerClient(address.target, conn_timeout=timeout, ssl=address.tls, ssl_context=True)
    return _http(client, inputs, (ClientError,))


def translated(error: Exception, address: Address, timeout: float) -> Refused | ServerError:
    """What a call raised, in our terms; `may_be_refusal` tells of the one case that is not certain."""
    status = _status(error)
    if isinstance(error, TimeoutError) or status == _TOO_LATE:
        return ServerError(f"no answer from {address.target} over {address.title} within {timeout:g} s.")
    if status not in (None, _NO_SERVER, _NO_TRITON):
        return refusal(error)
    other = "http" if address.protocol == "grpc" else "grpc"
    return ServerError(
        f"no Triton server answers at {address.target} over {address.title} ({_reason(error)}); start it, or give the "
        f"right port, or the protocol {other}."
    )


def may_be_refusal(error: Exception) -> bool:
    """Whether a server that lives may have answered this: a full queue has the status of a server that is not there."""
    return _status(error) == _NO_SERVER


def refusal(error: Any) -> Refused:
    """The answer of a server that lives."""
    return Refused(one_line(error.message() or "no reason given"))


def arrays_of(result: Any, signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a request by name."""
    return {each.name: result.as_numpy(each.name) for each in signature.outputs}


def _grpc(client: Any, module: ModuleType, timeout: float) -> Calls:
    from tritonclient.utils import InferenceServerException

    return Calls(client, module, {"client_timeout": timeout}, {"as_json": True}, (InferenceServerException,))


def _http(client: Any, module: ModuleType, failures: tuple[type[Exception], ...]) -> Calls:
    """HTTP clients have their timeout from the start, and fail as the libraries below them do."""
    from tritonclient.utils import InferenceServerException

    # ValueError: an answer that is no JSON, of something that is no Triton server.
    return Calls(client, module, {}, {}, (InferenceServerException, OSError, ValueError, *failures))


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f'tritonclient cannot be imported ({error}); pip install "metaformer-export[triton-client]".'
    )


def _status(error: Exception) -> str | None:
    """Of an answer, gRPC's or HTTP's; None if there was none."""
    from tritonclient.utils import InferenceServerException

    return error.status() if isinstance(error, InferenceServerException) else None


def _reason(error: Any) -> str:
    """What the system, or what answers there, said."""
    if _status(error) is not None:
        return _CHAIN.sub("", one_line(error.message()))
    # A status that is not tritonclient's is of a line that aiohttp could not read.
    if hasattr(error, "status") or (isinstance(error, (ValueError, HTTPException)) and "closed" not in str(error)):
        return "what is there speaks another protocol"
    number = getattr(error, "errno", None) or 0
    if number in errorcode and not isinstance(error, SSLError):  # whose numbers are OpenSSL's
        return strerror(number)
    return one_line(str(error)).rstrip(".") or type(error).__name__
