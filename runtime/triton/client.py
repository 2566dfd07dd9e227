# SPDX-License-Identifier: Apache-2.0
"""A client of a Triton Inference Server that serves what this package exported.

    with Client("localhost:8001") as client:
        for found in client.classify([Path("cat.jpg"), data], "hornet_t"):
            print(found.classes[0].label if found.classes else found.error)

`AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from ...errors import ServerError
from .address import AnyProtocol, parse_address
from .answers import (
    Classification,
    ModelState,
    Refused,
    Signature,
    Tensor,
    batch_tensors,
    check_classifies,
    check_timeout,
    check_top,
    classification_of,
    image_tensors,
    models_of_index,
    unknown_model,
    unreadable,
)
from .async_client import AsyncClient
from .calling import AT_ONCE, arrays_of, may_be_refusal, open_calls, refusal, translated

__all__ = ["AsyncClient", "Client"]


@dataclass(frozen=True)
class _Pending:
    """A request under way."""

    result: Callable[[], dict[str, npt.NDArray[Any]]]
    cancel: Callable[[], object]


class Client:
    """A connection to a server, made when it is first used. Over gRPC any thread may use it, over HTTP only one.

    Args:
        url: HOST:PORT, or http://, https://, grpc:// or grpcs:// and it; https and grpcs are encrypted.
        protocol: auto takes the scheme's; without one, HTTP at port 8000 and gRPC at any other.
        timeout: seconds that a request may take.

    Raises:
        InputError: the address cannot be one, or the timeout is not above 0.
        MissingDependencyError: tritonclient is not installed.
    """

    def __init__(self, url: str, *, protocol: AnyProtocol = "auto", timeout: float = 30.0) -> None:
        check_timeout(timeout)
        self._address, self._timeout = parse_address(url, protocol), timeout
        self._calls = open_calls(self._address, timeout)
        self._signatures: dict[str, Signature] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._calls.client.close()

    def ready(self, model: str | None = None) -> bool:
        """Whether the server answers requests, or the model of exactly that name does; False also without a server."""
        calls = self._calls
        try:
            if model is None:
                return bool(self._call(calls.client.is_server_ready, **calls.every))
            return bool(self._call(calls.client.is_model_ready, model, **calls.every))
        except (Refused, ServerError):
            return False

    def models(self) -> tuple[ModelState, ...]:
        """Every version of every model that the server knows of; ServerError if it does not answer."""
        calls = self._calls
        try:
            answer = self._call(calls.client.get_model_repository_index, **calls.every, **calls.data)
        except Refused as error:
            raise ServerError(f"{self._address.target} does not say which models it has: {error}.") from error
        return models_of_index(answer)

    def infer(self, model: str, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Run a model of one input, such as an exported one without its ensemble.

        Args:
            batch: in the model's own type and shape, for instance float32 (N, 3, 224, 224), preprocessed.

        Returns:
            The outputs by name.

        Raises:
            InputError: the model takes another type or shape.
            ServerError: no server answers, in time, or it has no such model, or the model failed.
        """
        from tritonclient.utils import np_to_triton_dtype

        signature = self._signature(model, (model,))
        tensors = batch_tensors(signature, batch, np_to_triton_dtype(batch.dtype))
        try:
            return self._start(signature, tensors).result()
        except Refused as error:
            self._signatures.clear()
            raise ServerError(f"model {model} at {self._address.target} failed: {error}.") from error

    def classify(
        self,
        images: Sequence[bytes | Path],
        model: str,
        *,
        top: int = 5,
        told: Callable[[int], object] = lambda images: None,
    ) -> list[Classification]:
        """Say what images show, by the ensemble of a model. Each is a request of its own, some at a time, so that an
        image that the server refuses spoils no other.

        Args:
            images: encoded, JPEG, PNG or WebP, or files of such.
            model: its name, or its ensemble's.
            top: classes for each image, as far as the server gives so many.
            told: called with 1 for every image that is done.

        Returns:
            One for each image, in their order.

        Raises:
            InputError: `top` is not above 0.
            ServerError: no server answers, in time, or it has no such model, or the model does not classify.
        """
        from .config import ensemble_name

        check_top(top)
        signature = self._signature(model, (ensemble_name(model), model))
        check_classifies(signature)
        found = []
        for outcome in self._outcomes(signature, images):
            found.append(Classification(error=outcome) if isinstance(outcome, str) else classification_of(outcome, top))
            told(1)
        if any(each.error for each in found):
            self._signatures.clear()  # the server may have another version of the model by now
        return found

    def _signature(self, model: str, names: Iterable[str]) -> Signature:
        """Of the first of several names that the server has a model of."""
        if model in self._signatures:
            return self._signatures[model]
        calls = self._calls
        for name in names:
            try:
                metadata = self._call(calls.client.get_model_metadata, name, **calls.every, **calls.data)
            except Refused:
                continue
            return self._signatures.setdefault(model, Signature.from_metadata(metadata))
        raise unknown_model(model, self._address.target, self.models())

    def _outcomes(
        self, signature: Signature, images: Iterable[bytes | Path]
    ) -> Iterator[dict[str, npt.NDArray[Any]] | str]:
        """Of each image the answer, or why there is none; files are read when their turn comes."""
        waiting: deque[_Pending | str] = deque()
        try:
            for image in images:
                if len(waiting) == AT_ONCE:
                    yield _outcome(waiting.popleft())
                try:
                    waiting.append(self._start(signature, image_tensors(signature, image)))
                except OSError as error:
                    waiting.append(unreadable(error))
            while waiting:
                yield _outcome(waiting.popleft())
        finally:
            for each in waiting:
                if isinstance(each, _Pending):
                    each.cancel()

    def _start(self, signature: Signature, tensors: Sequence[Tensor]) -> _Pending:
        """Send a request; its result is waited for elsewhere."""
        inputs = self._calls.inputs(tensors)
        if self._address.protocol == "http":
            from gevent import spawn

            # What a greenlet raises, gevent prints.
            greenlet = spawn(partial(_caught, self._calls.client.infer, signature.model, inputs))
            return _Pending(lambda: self._arrays(signature, *greenlet.get()), cancel=lambda: None)
        future: Future[tuple[Any, Exception | None]] = Future()
        context = self._calls.client.async_infer(
            signature.model, inputs, lambda result, error: future.set_result((result, error)), **self._calls.every
        )
        return _Pending(lambda: self._arrays(signature, *future.result()), context.cancel)

    def _arrays(self, signature: Signature, result: Any, error: Exception | None) -> dict[str, npt.NDArray[Any]]:
        if error is not None:
            raise self._translated(error) from error
        return arrays_of(result, signature)

    def _call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        try:
            return function(*arguments, **settings)
        except self._calls.failures as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, self._calls.failures):
            return error
        if may_be_refusal(error) and self._lives():
            return refusal(error)
        return translated(error, self._address, self._timeout)

    def _lives(self) -> bool:
        try:
            return bool(self._calls.client.is_server_live(**self._calls.every))
        except self._calls.failures:
            return False


def _outcome(pending: _Pending | str) -> dict[str, npt.NDArray[Any]] | str:
    if isinstance(pending, str):
        return pending
    try:
        return pending.result()
    except Refused as error:
        return str(error)


def _caught(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error
