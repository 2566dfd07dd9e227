# SPDX-License-Identifier: Apache-2.0
"""The client against a real server, over gRPC and HTTP, in threads and in asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_repository import SCORES, SLEEP_S, best_of, write_toys
from tritonserver import Server, needs_tritonserver, running

from metaformer_export.errors import InputError, MissingDependencyError, ServerError
from metaformer_export.runtime.triton.answers import Classification
from metaformer_export.runtime.triton.async_client import AsyncClient
from metaformer_export.runtime.triton.client import Client

WAYS = [(protocol, kind) for protocol in ("grpc", "http") for kind in ("sync", "async")]
EACH_WAY = pytest.mark.parametrize(("protocol", "kind"), WAYS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(write_toys(tmp_path_factory.mktemp("toys"))) as started:
        yield started


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(url: str, kind: str, method: str, *arguments: Any, protocol: Any = "auto", timeout: float = 20) -> Any:
    """One call of a client of its own."""
    if kind == "sync":
        with Client(url, protocol=protocol, timeout=timeout) as client:
            return getattr(client, method)(*arguments)

    async def asked() -> Any:
        async with AsyncClient(url, protocol=protocol, timeout=timeout) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(asked())


def url_of(server: Server, protocol: str) -> str:
    return f"{protocol}://{getattr(server, protocol)}"


def told(found: Classification) -> list[tuple[str, int, float]]:
    return [(each.label, each.class_id, each.score) for each in found.classes]


@needs_tritonserver
@EACH_WAY
def test_an_image_that_is_refused_or_unreadable_spoils_no_other(
    server: Server, protocol: str, kind: str, tmp_path: Path
) -> None:
    images: list[bytes | Path] = [b"x" * size for size in range(60)]
    images[7], images[30] = b"bad image", tmp_path / "missing.jpg"
    images[41] = tmp_path / "there.jpg"
    images[41].write_bytes(b"y" * 41)
    found = ask(url_of(server, protocol), kind, "classify", images, "toy")
    assert len(found) == 60
    assert found[7] == Classification(error="in ensemble 'toy_ensemble', image 0 of 1 cannot be decoded: it is bad")
    assert found[30] == Classification(error="cannot be read: No such file or directory")
    assert [told(each) for i, each in enumerate(found) if i not in (7, 30)] == [
        best_of(b"x" * size) for size in range(60) if size not in (7, 30)
    ]
    assert {each.error for i, each in enumerate(found) if i not in (7, 30)} == {""}


@needs_tritonserver
@EACH_WAY
def test_bytes_arrive_whole(server: Server, protocol: str, kind: str) -> None:
    """Also zeros at the end, none at all, and 20 MB."""
    images = [b"", b"a\0\0\0", b"\xff" * 20_000_003]
    found = ask(url_of(server, protocol), kind, "classify", images, "toy")
    assert [told(each) for each in found] == [best_of(image) for image in images]


@needs_tritonserver
@EACH_WAY
def test_a_model_is_asked_by_its_ensemble_where_it_has_one(server: Server, protocol: str, kind: str) -> None:
    url = url_of(server, protocol)
    asked = [ask(url, kind, "classify", [b"abc"], name) for name in ("toy", "toy_ensemble", "toy_scorer")]
    assert [told(found) for (found,) in asked] == [best_of(b"abc")] * 3


@needs_tritonserver
@EACH_WAY
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("horse", "there is no model horse at {target}; it serves narrow, plain, toy, toy_ensemble, toy_scorer."),
        ("plain", "model plain takes no encoded image but pixels, FP32 [-1, 3, 2, 2]; serve its ensemble"),
    ],
)
def test_a_model_that_cannot_classify_is_an_error_that_helps(
    server: Server, protocol: str, kind: str, model: str, message: str
) -> None:
    with pytest.raises(ServerError) as caught:
        ask(url_of(server, protocol), kind, "classify", [b"abc"], model)
    assert str(caught.value).startswith(message.format(target=getattr(server, protocol)))


@needs_tritonserver
@EACH_WAY
def test_arrays_are_inferred_by_the_bare_model(server: Server, protocol: str, kind: str) -> None:
    batch = np.random.default_rng(0).normal(size=(3, 3, 2, 2)).astype(np.float32)
    outputs = ask(url_of(server, protocol), kind, "infer", "toy", batch)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    np.testing.assert_allclose(outputs["logits"], batch.sum(axis=(1, 2, 3))[:, None] * np.arange(10), rtol=1e-6)


@needs_tritonserver
@EACH_WAY
def test_arrays_of_another_type_or_shape_are_refused_and_not_cast(server: Server, protocol: str, kind: str) -> None:
    for batch, got in (
        (np.zeros((1, 3, 2, 2), np.float64), "float64 [1, 3, 2, 2]"),
        (np.zeros((1, 3, 2, 3), np.float32), "float32 [1, 3, 2, 3]"),
        (np.zeros((3, 2, 2), np.float32), "float32 [3, 2, 2]"),
    ):
        with pytest.raises(InputError) as caught:
            ask(url_of(server, protocol), kind, "infer", "toy", batch)
        assert str(caught.value) == f"model toy takes pixels, FP32 [-1, 3, 2, 2]; got {got}."
    with pytest.raises(ServerError, match=r"^model toy at \S+ failed: .*batch-size must be <= 8") as caught:
        ask(url_of(server, protocol), kind, "infer", "toy", np.zeros((9, 3, 2, 2), np.float32))
    assert "\n" not in str(caught.value)


@needs_tritonserver
@EACH_WAY
def test_readiness_is_told_and_never_raised(server: Server, protocol: str, kind: str, unused_port: int) -> None:
    url = url_of(server, protocol)
    assert ask(url, kind, "ready") is True
    assert ask(url, kind, "ready", "toy_ensemble") is True
    assert ask(url, kind, "ready", "horse") is False
    assert ask(f"{protocol}://127.0.0.1:{unused_port}", kind, "ready") is False


@needs_tritonserver
@EACH_WAY
def test_the_models_of_a_server_are_listed(server: Server, protocol: str, kind: str) -> None:
    models = ask(url_of(server, protocol), kind, "models")
    assert [(each.name, each.version, each.state, each.ready) for each in models] == [
        (name, "1", "READY", True) for name in ("narrow", "plain", "toy", "toy_ensemble", "toy_scorer")
    ]


@needs_tritonserver
@EACH_WAY
def test_an_answer_that_takes_too_long_is_an_error(server: Server, protocol: str, kind: str) -> None:
    with pytest.raises(ServerError) as caught:
        ask(url_of(server, protocol), kind, "classify", [b"slow"], "toy", timeout=SLEEP_S / 4)
    target = getattr(server, protocol)
    title = {"grpc": "gRPC", "http": "HTTP"}[protocol]
    assert str(caught.value) == f"no answer from {target} over {title} within {SLEEP_S / 4:g} s."


@needs_tritonserver
@EACH_WAY
def test_a_full_queue_refuses_images_and_is_not_taken_for_a_missing_server(
    server: Server, protocol: str, kind: str
) -> None:
    """gRPC gives both the same status. One image is worked on and one waits: the others of eight are refused."""
    found = ask(url_of(server, protocol), kind, "classify", [b"slow"] * 8, "narrow")
    refused = [each.error for each in found if each.error]
    assert 1 <= len(refused) <= 7
    assert all("Exceeds maximum queue size" in each for each in refused)
    assert [told(each) for each in found if not each.error] == [best_of(b"slow")] * (8 - len(refused))


@needs_tritonserver
@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        ("grpc", "sync"),
        ("http", "async"),
        pytest.param("grpc", "async", marks=pytest.mark.slow),
        pytest.param("http", "sync", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_dies_ends_the_call(tmp_path: Path, protocol: str, kind: str) -> None:
    with running(write_toys(tmp_path, "toy_scorer")) as doomed:
        killer = threading.Timer(SLEEP_S / 2, os.kill, (doomed.process.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(ServerError, match=r"^no Triton server answers at 127\.0\.0\.1:\d+ over "):
            ask(url_of(doomed, protocol), kind, "classify", [b"slow"] * 20, "toy_scorer")
        killer.join()


@needs_tritonserver
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_wrong_port_is_an_error_that_names_the_other_protocol(server: Server, kind: str, unused_port: int) -> None:
    for target, protocol in (
        (server.http, "grpc"),
        (server.grpc, "http"),
        (server.metrics, "http"),
        (f"127.0.0.1:{unused_port}", "grpc"),
        (f"127.0.0.1:{unused_port}", "http"),
    ):
        with pytest.raises(ServerError) as caught:
            ask(target, kind, "classify", [b"abc"], "toy", protocol=protocol)
        said, other = str(caught.value), {"grpc": "http", "http": "grpc"}[protocol]
        assert said.startswith(f"no Triton server answers at {target} over ")
        assert said.endswith(f"start it, or give the right port, or the protocol {other}.")
        assert "\n" not in said
        assert ("Connection refused" in said) == target.endswith(f":{unused_port}")


@needs_tritonserver
def test_an_async_client_answers_several_callers_at_once(server: Server) -> None:
    async def asked() -> list[list[Classification]]:
        async with AsyncClient(server.grpc) as client:
            return await asyncio.gather(*(client.classify([b"z" * size], "toy", top=1) for size in range(30)))

    assert [told(found) for (found,) in asyncio.run(asked())] == [best_of(b"z" * size, 1) for size in range(30)]


@needs_tritonserver
def test_a_client_of_grpc_answers_several_threads_at_once(server: Server) -> None:
    found: dict[int, Sequence[Classification]] = {}
    with Client(server.grpc) as client:

        def asked(size: int) -> None:
            found[size] = client.classify([b"z" * size] * 5, "toy", top=1)

        threads = [threading.Thread(target=asked, args=(size,)) for size in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {size: [told(each) for each in of] for size, of in found.items()} == {
        size: [best_of(b"z" * size, 1)] * 5 for size in range(8)
    }


@needs_tritonserver
def test_no_more_classes_come_than_asked_for_or_given(server: Server) -> None:
    images: list[int] = []
    with Client(server.grpc) as client:
        assert len(client.classify([b"a"], "toy", top=2)[0].classes) == 2
        (found,) = client.classify([b"a"], "toy", top=9, told=images.append)
        assert [each.score for each in found.classes] == list(SCORES)
        with pytest.raises(InputError, match="top must be at least 1; got 0"):
            client.classify([b"a"], "toy", top=0)
    assert images == [1]


def test_a_timeout_must_be_above_0() -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(InputError, match="above 0 seconds; got -1"):
            client("localhost:8001", timeout=-1)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "metaformer-export\[triton-client\]"'):
        Client("localhost:8000")
