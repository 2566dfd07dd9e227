# SPDX-License-Identifier: Apache-2.0
"""A model repository in a real Triton Inference Server: right answers, bad images, and new versions under load."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import photographs
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException
from tritonserver import Server, needs_tritonserver, running

from metaformer_export import create_model
from metaformer_export.calibration.images import preprocess
from metaformer_export.cli import main
from metaformer_export.delivered import read_spec
from metaformer_export.runtime import eager

pytestmark = needs_tritonserver

MODEL = "poolformer_s12"
ENSEMBLE = f"{MODEL}_ensemble"
POLLING = ("--model-control-mode=poll", "--repository-poll-secs=1")


def exported(folder: Path, seed: int) -> Path:
    """An export of random weights, every branch alive."""
    assert main(["--model", MODEL, "--target", "onnx", "--seed", str(seed), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("served") / "first", seed=0)


@pytest.fixture(scope="module")
def server(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that do not change its repository."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    added = ["triton", str(export), "--repository", str(repository), "--backend", "python", "--no-measure"]
    assert main([*added, "--queue-timeout", "100"]) == 0
    with running(repository) as started:
        yield started


@dataclass(frozen=True)
class Eager:
    """What eager PyTorch says of files, preprocessed as eval preprocesses them."""

    scores: NDArray[np.float64]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The first class of each (N,)."""
        return self.scores.argmax(axis=-1)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return photographs.jpegs()


def eager_of(export: Path, files: list[bytes], seed: int) -> Eager:
    spec = read_spec(export)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    batch = np.stack([preprocess(image, spec.preprocessing, spec.image_size) for image in images])
    logits = eager.run(create_model(MODEL, seed=seed), batch)[0].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return Eager(powers / powers.sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def wanted(export: Path, files: list[bytes]) -> Eager:
    return eager_of(export, files, seed=0)


def ask(client: grpc.InferenceServerClient, files: list[bytes]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and classes (N, 5) of one request."""
    batch = np.array([[data] for data in files], np.object_)
    image = grpc.InferInput("image", list(batch.shape), "BYTES")
    image.set_data_from_numpy(batch)
    answer = client.infer(ENSEMBLE, [image], client_timeout=100)
    return answer.as_numpy("scores"), answer.as_numpy("class_ids")


def batches(files: list[bytes]) -> Iterator[slice]:
    """Of 1, 2, ... 8 files, over and over."""
    start, size = 0, 1
    while start < len(files):
        yield slice(start, min(start + size, len(files)))
        start, size = start + size, size % 8 + 1


def test_64_photographs_in_batches_of_mixed_sizes_get_eagers_classes_and_scores(
    server: Server, files: list[bytes], wanted: Eager
) -> None:
    assert len(set(files)) == 64
    assert len(set(wanted.classes)) >= 6, "the model tells them apart"
    client = grpc.InferenceServerClient(server.grpc)
    for part in batches(files):
        scores, classes = ask(client, files[part])
        assert np.array_equal(classes[:, 0], wanted.classes[part])
        eagers = np.take_along_axis(wanted.scores[part], classes, axis=-1)
        assert np.abs(scores - eagers).max() <= 1e-5
        assert np.abs(scores / eagers - 1).max() <= 1e-3
        assert np.all(scores[:, 1:] <= scores[:, :-1])


def test_labels_are_the_names_of_the_classes(server: Server, files: list[bytes], wanted: Eager) -> None:
    client = grpc.InferenceServerClient(server.grpc)
    image = grpc.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[files[0]]], np.object_))
    (label,) = client.infer(ENSEMBLE, [image]).as_numpy("labels")[0, :1]
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert config["output"][0]["label_filename"] == "labels.txt"
    names = (Path(__file__).parents[1] / "runtime/triton/imagenet.txt").read_text("utf-8").splitlines()
    assert len(names) == 1000
    assert label.decode() == names[wanted.classes[0]]


def test_turned_pictures_and_other_formats_are_read_as_eval_reads_them(server: Server, export: Path) -> None:
    cat = Image.open(Path(__file__).parents[1] / "calibration/photographs/cat.jpg")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn to the right
    cat.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    client = grpc.InferenceServerClient(server.grpc)
    upright, _ = ask(client, [photographs.encoded(cat, "PNG")])
    shown, _ = ask(client, [turned.getvalue()])
    assert np.abs(shown - upright).max() <= 1e-6
    lossless = io.BytesIO()
    cat.save(lossless, "WEBP", lossless=True)
    assert np.abs(ask(client, [lossless.getvalue()])[0] - upright).max() <= 1e-6


@dataclass
class Load:
    """Clients that ask for batches of good photographs all the time, each from a thread of its own.

    Attributes:
        answers: when it was asked, which photographs, and their classes.
    """

    server: Server
    files: list[bytes]
    answers: list[tuple[float, slice, NDArray[np.int64]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads.extend(threading.Thread(target=self._ask) for _ in range(3))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        client = grpc.InferenceServerClient(self.server.grpc)
        while not self._stop.is_set():
            for part in batches(self.files[:16]):
                asked = time.monotonic()
                try:
                    self.answers.append((asked, part, ask(client, self.files[part])[1][:, 0]))
                except InferenceServerException as error:
                    self.failures.append(str(error))
                if self._stop.is_set():
                    return


BAD = {
    "corrupted": (lambda good: good[:200] + bytes(len(good) - 200), "cannot be decoded: "),
    "truncated": (lambda good: good[: len(good) // 2], "image file is truncated"),
    "empty": (lambda good: b"", "it is empty"),
    "text": (lambda good: b"no picture at all", "it is no image, or of a format"),
    "50 MB": (lambda good: good + bytes(50_000_000 - len(good)), "it has 50.0 MB, and 20 MB are the limit"),
}


def test_bad_images_in_the_middle_of_load_fail_alone(server: Server, files: list[bytes], wanted: Eager) -> None:
    client = grpc.InferenceServerClient(server.grpc)
    with Load(server, files[8:]) as load:
        for _ in range(3):
            for spoil, message in BAD.values():
                with pytest.raises(InferenceServerException, match=message):
                    ask(client, [spoil(files[3])])
                with pytest.raises(InferenceServerException, match=rf"image 1 of 3 .*{message}"):
                    ask(client, [files[0], spoil(files[3]), files[1]])
                assert client.is_server_ready()
                assert client.is_model_ready(ENSEMBLE)
    assert load.failures == []
    assert len(load.answers) >= 10
    for _, part, classes in load.answers:
        assert np.array_equal(classes, wanted.classes[8:][part])


def test_a_new_version_under_load_loses_no_request(
    export: Path, files: list[bytes], wanted: Eager, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    added = ["--repository", str(repository), "--backend", "python", "--no-measure", "--queue-timeout", "100"]
    assert main(["triton", str(export), *added]) == 0
    other = exported(tmp_path / "other", seed=1)
    then = eager_of(other, files[:16], seed=1)
    assert not np.array_equal(then.classes, wanted.classes[:16])
    with running(repository, *POLLING) as server, Load(server, files) as load:
        client = grpc.InferenceServerClient(server.grpc)
        _until(lambda: len(load.answers) >= 5)
        assert main(["triton", str(other), *added]) == 0
        _until(lambda: client.is_model_ready(MODEL, "2"))
        assert main(["triton", str(other), *added, "--keep", "1"]) == 0
        _until(lambda: not client.is_model_ready(MODEL, "1"))
        gone = time.monotonic()
        _until(lambda: sum(asked > gone for asked, *_ in list(load.answers)) >= 10)
    assert load.failures == []
    assert [each.name for each in (repository / MODEL).iterdir() if each.is_dir() and each.name.isdigit()] == ["2"]
    for asked, part, classes in load.answers:
        possible = (then,) if asked > gone else (wanted, then)
        assert any(np.array_equal(classes, each.classes[part]) for each in possible)


def _until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
