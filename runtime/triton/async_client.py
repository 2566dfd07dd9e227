# SPDX-License-Identifier: Apache-2.0
"""`Client` for asyncio.

async with AsyncClient("localhost:8001") as client:
    (found,) = await client.classify([data], "hornet_t")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
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
from .calling import AT_ONCE, Calls, arrays_of, may_be_refusal, open_async_calls, refusal, translated


class AsyncClient:
    """A connection to a server, made when it is first used, for the event loop that uses it then.

    Arguments, results and errors are those of `Client`.
    """

    def __init__(self, url: str, *, protocol: AnyProtocol = "auto", timeout: float = 30.0) -> None:
        check_timeout(timeout)
        self._address, self._timeout = parse_address(url, protocol), timeout
        self._opened: Calls | None = None
        self._signatures: dict[str, Signature] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        if self._opened is not None:
            await self._opened.client.close()
            self._opened = None

    async def ready(self, model: str | None = None) -> bool:
        """As `Client.ready`."""
        calls = self._calls()
        try:
            if model is None:
                return bool(await self._call(calls.client.is_server_ready, **calls.every))
            return bool(await self._call(calls.client.is_model_ready, model, **calls.every))
        except (Refused, ServerError):
            return False

    async def models(self) -> tuple[ModelState, ...]:
        """As `Client.models`."""
        calls = self._calls()
        try:
            answer = await self._call(calls.client.get_model_repository_index, **calls.every, **calls.data)
        except Refused as error:
            raise ServerError(f"{self._address.target} does not say which models it has: {error}.") from error
        return models_of_index(answer)

    async def infer(self, model: str, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """As `Client.infer`."""
        from tritonclient.utils import np_to_triton_dtype

        signature = await self._signature(model, (model,))
        tensors = batch_tensors(signature, batch, np_to_triton_dtype(batch.dtype))
        try:
            return await self._answer(signature, tensors)
        except Refused as error:
            self._signatures.clear()
            raise ServerError(f"model {model} at {self._address.target} failed: {error}.") from error

    async def classify(self, images: Sequence[bytes | Path], model: str, *, top: int = 5) -> list[Classification]:
        """As `Client.classify`."""
        from .config import ensemble_name

        check_top(top)
        signature = await self._signature(model, (ensemble_name(model), model))
        check_classifies(signature)
        turn = asyncio.Semaphore(AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._classified(signature, image, top, turn)) for image in images]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others say the same of the same server
        found = [task.result() for task in tasks]
        if any(each.error for each in found):
            self._signatures.clear()  # the server may have another version of the model by now
        return found

    async def _signature(self, model: str, names: Iterable[str]) -> Signature:
        """Of the first of several names that the server has a model of."""
        if model in self._signatures:
            return self._signatures[model]
        calls = self._calls()
        for name in names:
            try:
                metadata = await self._call(calls.client.get_model_metadata, name, **calls.every, **calls.data)
            except Refused:
                continue
            return self._signatures.setdefault(model, Signature.from_metadata(metadata))
        raise unknown_model(model, self._address.target, await self.models())

    async def _classified(
        self, signature: Signature, image: bytes | Path, top: int, turn: asyncio.Semaphore
    ) -> Classification:
        async with turn:
            try:
                tensors = await asyncio.to_thread(image_tensors, signature, image)
            except OSError as error:
                return Classification(error=unreadable(error))
            try:
                return classification_of(await self._answer(signature, tensors), top)
            except Refused as error:
                return Classification(error=str(error))

    async def _answer(self, signature: Signature, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[Any]]:
        calls = self._calls()
        result = await self._call(calls.client.infer, signature.model, calls.inputs(tensors), **calls.every)
        return arrays_of(result, signature)

    async def _call(self, function: Any, *arguments: Any, **settings: Any) -> Any:
        calls = self._calls()
        try:
            return await function(*arguments, **settings)
        except calls.failures as error:
            if may_be_refusal(error) and await self._lives():
                raise refusal(error) from error
            raise translated(error, self._address, self._timeout) from error

    async def _lives(self) -> bool:
        calls = self._calls()
        try:
            return bool(await calls.client.is_server_live(**calls.every))
        except calls.failures:
            return False

    def _calls(self) -> Calls:
        """Opened at the first call: tritonclient takes the event loop that runs when a client is made."""
        if self._opened is None:
            self._opened = open_async_calls(self._address, self._timeout)
        return self._opened
