# SPDX-License-Identifier: Apache-2.0
"""Sessions over a stand-in for TensorRT and CUDA: batches of any size, whose memory, in which context, after whom."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stand_in_engine import IO, Arrays, Context, DataType, Network, OnGpu, Recording, TensorRT, put_in_place

from metaformer_export.errors import EngineError, InputError
from metaformer_export.runtime.batches import Part, batch_axis, joined, parts_of, rows_of
from metaformer_export.runtime.tensorrt import listening
from metaformer_export.runtime.tensorrt.session import Session, session_of

WINDOWS = 4
"""Rows of an output that holds several for an image, as the windows of an attention."""


def computed(inputs: Arrays) -> Arrays:
    """Of every image, by itself: each output tells image, position and clustering from all others."""
    images, order = inputs["images"], inputs.get("order", np.zeros((len(inputs["images"]), 3), np.int64))
    rows = images.reshape(len(images), -1)
    windows = (rows[:, None, :2] * np.arange(1, WINDOWS + 1, dtype=np.float32)[:, None]).reshape(-1, 2)
    return {
        "windows": windows,
        "logits": np.sin(rows) + order.sum(1, keepdims=True),
        "across": np.ascontiguousarray(rows[:, :3].T),
        "scale": np.float32(0.5) * np.ones((), np.float32),
    }


OUTPUTS = {"windows": IO((-1, 2)), "logits": IO((-1, 8)), "across": IO((3, -1)), "scale": IO(())}
PLAIN = Network({"images": IO((-1, 2, 2, 2))}, OUTPUTS, (2, 4), computed)
CLUSTERED = replace(PLAIN, inputs={**PLAIN.inputs, "order": IO((-1, 3), DataType.INT64)})


def images_of(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, 2, 2, 2)).astype(np.float32)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    return put_in_place(PLAIN, monkeypatch)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 8))
def test_parts_take_every_image_once_at_sizes_of_the_engine(images: int, smallest: int, more: int) -> None:
    parts = parts_of(images, smallest, smallest + more)
    assert [index for part in parts for index in range(part.first, part.end)] == list(range(images))
    assert all(smallest <= part.size <= smallest + more and part.images <= part.size for part in parts)


def test_a_batch_is_cut_at_the_largest_and_filled_up_to_the_smallest() -> None:
    assert parts_of(9, 2, 4) == (Part(0, 4, 4), Part(4, 8, 4), Part(8, 9, 2))
    assert parts_of(3, 8, 32) == (Part(0, 3, 8),)
    assert rows_of(np.arange(9), Part(7, 9, 4)).tolist() == [7, 8, 8, 8]
    with pytest.raises(InputError, match="without images"):
        parts_of(0, 1, 4)


@given(st.integers(1, 23), st.integers(1, 5), st.integers(0, 4), st.integers(1, 5), st.sampled_from([0, 1]))
def test_joined_parts_are_the_rows_of_each_image_alone(
    images: int, smallest: int, more: int, each: int, axis: int
) -> None:
    array = np.random.default_rng(0).standard_normal((images, each, 2))

    def output(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = np.tanh(rows).reshape(-1, 2)
        return flat if axis == 0 else flat.T

    parts = parts_of(images, smallest, smallest + more)
    got = joined("x", [output(rows_of(array, part)) for part in parts], parts, axis)
    alone = np.concatenate([output(array[index : index + 1]) for index in range(images)], axis)
    np.testing.assert_array_equal(got, alone)


def test_an_output_says_along_which_axis_its_images_lie() -> None:
    assert [batch_axis("x", shape, -1) for shape in ((-1, 7), (7, -1), (7,), ())] == [0, 1, None, None]
    assert [batch_axis("x", shape, 2) for shape in ((2, 7), (112, 7), (7,), ())] == [0, 0, None, None]
    with pytest.raises(EngineError, match=r"output x is \(-1, -1\).*--batch MIN:OPT:MAX"):
        batch_axis("x", (-1, -1), -1)


def test_an_output_without_an_equal_share_for_each_image_is_refused() -> None:
    with pytest.raises(EngineError, match=r"output x is \(5, 2\) for 4 images"):
        joined("x", [np.zeros((5, 2))], [Part(0, 3, 4)], 0)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_any_batch_gives_what_each_image_gives_alone(tensorrt: TensorRT, separate: bool, cuda_graph: bool) -> None:
    session = session_of(b"", separate=separate, cuda_graph=cuda_graph)
    for count in (3, 1, 9, 2, 4, 11, 3):
        images = images_of(count)
        alone = [computed({"images": images[index : index + 1]}) for index in range(count)]
        windows, logits, across, scale = session(images)
        np.testing.assert_array_equal(windows, np.concatenate([each["windows"] for each in alone]))
        np.testing.assert_array_equal(logits, np.concatenate([each["logits"] for each in alone]))
        np.testing.assert_array_equal(across, np.concatenate([each["across"] for each in alone], 1))
        assert scale.tolist() == 0.5


def test_clusterings_are_cut_and_filled_up_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(CLUSTERED, monkeypatch)
    images, order = images_of(5), np.arange(15).reshape(5, 3)
    got = session_of(b"")(images, {"order": order})[1]
    np.testing.assert_array_equal(got, np.sin(images.reshape(5, 8)) + order.sum(1, keepdims=True).astype(np.float32))


def test_an_engine_of_one_batch_takes_any(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"windows": IO((8, 2)), "logits": IO((2, 8)), "across": IO((3, 2)), "scale": IO(())}
    put_in_place(Network({"images": IO((2, 2, 2, 2))}, outputs, (2, 2), computed), monkeypatch)
    session, images = session_of(b""), images_of(5)
    assert session.batch == (2, 2)
    windows, logits, *_ = session(images)
    np.testing.assert_array_equal(windows, computed({"images": images})["windows"])
    np.testing.assert_array_equal(logits, computed({"images": images})["logits"])


def test_the_engine_runs_at_its_own_batches_only(tensorrt: TensorRT) -> None:
    session = session_of(b"")
    session(images_of(9))
    assert [each for each in tensorrt.gpu.happened if each == "run"] == ["run"] * 3
    for outside in (1, 5):
        with pytest.raises(InputError, match=rf"batches of 2 to 4; got {outside}"):
            session.gpu_milliseconds(outside, 1)
        with pytest.raises(EngineError, match=rf"does not take input images as \({outside}, 2, 2, 2\)"):
            session.shaped_context(outside)


def test_tensors_of_the_caller_must_lie_on_the_gpu(tensorrt: TensorRT) -> None:
    with pytest.raises(InputError, match=r"input images is torch\.float32 .* on cpu"):
        session_of(b"").run({"images": torch.zeros(2, 2, 2, 2)})


def test_tensors_on_the_gpu_are_taken_as_they_are_between_the_callers_own_work(tensorrt: TensorRT) -> None:
    session, images = session_of(b""), images_of(3)
    outputs = session.run({"images": torch.from_numpy(images).as_subclass(OnGpu)})
    for name, want in computed({"images": images}).items():
        np.testing.assert_array_equal(outputs[name].numpy(), want)
    expected = ["session waits for caller", *["allocate"] * 5, "run", "caller waits for session"]
    assert tensorrt.gpu.happened == expected
    with pytest.raises(InputError, match=r"batches of 2 to 4; got 5"):
        session.run({"images": torch.from_numpy(images_of(5)).as_subclass(OnGpu)})


def test_outputs_come_in_the_order_of_the_graph(tensorrt: TensorRT) -> None:
    names = ("scale", "logits", "windows", "across")
    session, images = session_of(b"", outputs=names), images_of(2)
    assert tuple(each.name for each in session.outputs) == names
    for name, got in zip(names, session(images), strict=True):
        np.testing.assert_array_equal(got, computed({"images": images})[name])
    assert [each.name for each in session_of(b"").outputs] == list(OUTPUTS)


@pytest.mark.parametrize("names", [("logits",), ("windows", "logits", "across", "other"), (*OUTPUTS, "scale")])
def test_outputs_of_another_graph_are_refused(tensorrt: TensorRT, names: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="it is of another graph"):
        session_of(b"", outputs=names)


def test_an_output_whose_size_depends_on_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = replace(PLAIN, outputs={"found": IO((-1,))}, compute=lambda inputs: {"found": np.zeros(1, np.float32)})
    put_in_place(network, monkeypatch)
    with pytest.raises(EngineError, match=r"output found is \(-1,\)"):
        session_of(b"")(images_of(2))


def test_batch_sizes_share_a_context_unless_each_needs_its_own(tensorrt: TensorRT) -> None:
    session = session_of(b"")
    for count in (2, 3, 4):
        session(images_of(count))
    session.release()
    session(images_of(2))
    assert len(tensorrt.engine.contexts) == 1


@pytest.mark.parametrize(("separate", "cuda_graph"), [(True, False), (False, True), (True, True)])
def test_each_batch_size_has_a_context_of_its_own(tensorrt: TensorRT, separate: bool, cuda_graph: bool) -> None:
    session = session_of(b"", separate=separate, cuda_graph=cuda_graph)
    for count in (2, 3, 4, 2, 3):
        session(images_of(count))
    assert [each.shapes["images"][0] for each in tensorrt.engine.contexts] == [2, 3, 4]
    session.release()
    session(images_of(3))
    assert [each.shapes["images"][0] for each in tensorrt.engine.contexts] == [2, 3, 4, 3]


def test_a_recorded_run_is_replayed_and_no_two_are_of_one_context(tensorrt: TensorRT) -> None:
    session = session_of(b"", cuda_graph=True)
    for count in (2, 3, 2):
        session(images_of(count))
    recorded = [recording_of(session, count).contexts for count in (2, 3)]
    assert [len(each) for each in recorded] == [1, 1]
    assert recorded[0][0] is not recorded[1][0]
    assert tensorrt.gpu.happened.count("replay") == 3


def recording_of(session: Session, count: int) -> Recording:
    graph = session._buffers[count].graph
    assert isinstance(graph, Recording)
    return graph


def test_a_context_with_shapes_is_apart_from_those_that_run(tensorrt: TensorRT) -> None:
    session = session_of(b"")
    context = session.shaped_context(3)
    assert context.get_tensor_shape("windows") == (3 * WINDOWS, 2)
    session(images_of(4))
    assert context.get_tensor_shape("windows") == (3 * WINDOWS, 2)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_run_and_its_memory_come_after_what_the_caller_queued(tensorrt: TensorRT, cuda_graph: bool) -> None:
    session = session_of(b"", cuda_graph=cuda_graph)
    for queue in (lambda: session(images_of(2)), lambda: session.gpu_milliseconds(3, 1), lambda: session(images_of(2))):
        tensorrt.gpu.happened.clear()
        queue()
        waits = tensorrt.gpu.happened.index("session waits for caller")
        first = next(i for i, each in enumerate(tensorrt.gpu.happened) if each in ("allocate", "run", "replay"))
        assert waits < first


def test_runs_are_timed_one_each_and_waited_for_once(tensorrt: TensorRT) -> None:
    session = session_of(b"")
    assert session.gpu_milliseconds(2, 5) == [1.0] * 5
    begun = tensorrt.gpu.happened.index("record")
    assert tensorrt.gpu.happened[begun - 1] == "run", "the first run at a size is not timed"
    timed = tensorrt.gpu.happened[begun:]
    assert timed == ["record", "run", "record"] * 5 + ["synchronise"]


@pytest.mark.parametrize(("separate", "contexts"), [(False, 1), (True, 0)])
def test_weights_stream_within_a_budget_that_is_set_before_any_context(
    tensorrt: TensorRT, separate: bool, contexts: int
) -> None:
    session_of(b"", weight_streaming=True, separate=separate)
    assert tensorrt.engine.budgets == [(tensorrt.engine.automatic, 0)]
    assert len(tensorrt.engine.contexts) == contexts
    session_of(b"")
    assert len(tensorrt.engine.budgets) == 1


def test_a_budget_of_weights_that_is_not_taken_is_an_error(tensorrt: TensorRT) -> None:
    tensorrt.engine.refuses_budget = True
    with pytest.raises(EngineError, match="does not stream the weights within 4096 bytes but keeps 65536 on the GPU"):
        session_of(b"", weight_streaming=True)
    tensorrt.engine.automatic = 10**6  # room for all of them
    assert session_of(b"", weight_streaming=True).batch == (2, 4)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"images": (3, 1, 2, 2), "order": (3, 3)}, r"input images is \(3, 1, 2, 2\); .* \(batch, 2, 2, 2\)"),
        ({"images": (3, 2, 2, 2), "order": (3, 1)}, r"input order is \(3, 1\); .* \(batch, 3\)"),
        ({"images": (3, 2, 2, 2), "order": (1, 3)}, r"input order is \(1, 3\); .* the same batch"),
        ({"images": (9, 2, 2, 2), "order": (8, 3)}, r"input order is \(8, 3\); .* the same batch"),
        ({"images": (3, 2, 2, 2)}, "takes images, order; order is not given"),
        ({"images": (3, 2, 2, 2), "order": (3, 3), "more": (3, 3)}, "takes images, order; more is none of these"),
        ({"images": (), "order": (3, 3)}, r"input images is \(\)"),
    ],
)
def test_inputs_of_another_size_or_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, inputs: dict[str, tuple[int, ...]], said: str
) -> None:
    gpu = put_in_place(CLUSTERED, monkeypatch).gpu
    arrays = {name: np.zeros(shape, np.float32 if name == "images" else np.int64) for name, shape in inputs.items()}
    with pytest.raises(InputError, match=said):
        session_of(b"")(arrays["images"], {name: array for name, array in arrays.items() if name != "images"})
    with pytest.raises(InputError, match=said):
        session_of(b"").run({name: torch.from_numpy(array).as_subclass(OnGpu) for name, array in arrays.items()})
    assert gpu.runs == 0


@pytest.mark.parametrize("room", [0, 1])
def test_a_gpu_without_memory_is_one_line_and_the_next_batch_may_fit(tensorrt: TensorRT, room: int) -> None:
    session, images = session_of(b""), images_of(3)
    for run in (
        lambda: session(images),
        lambda: session.run({"images": torch.from_numpy(images).as_subclass(OnGpu)}),
        lambda: session.gpu_milliseconds(3, 1),
    ):
        tensorrt.gpu.room = room
        with pytest.raises(EngineError, match=r"no memory left for a batch of 3: .* 20\.00 GiB\. Give fewer") as caught:
            run()
        assert "\n" not in str(caught.value)
        assert tensorrt.current[0].name == "caller"
    tensorrt.gpu.room = None
    np.testing.assert_array_equal(session(images)[1], computed({"images": images})["logits"])


def test_a_gpu_that_fails_is_one_line(tensorrt: TensorRT) -> None:
    session = session_of(b"")
    tensorrt.gpu.failure = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA."
    said = "failed at {}: CUDA error: an illegal memory access was encountered. After most"
    with pytest.raises(EngineError, match=said.format("a batch of 2")):
        session(images_of(2))
    with pytest.raises(EngineError, match=said.format("a batch of 4")):
        session.gpu_milliseconds(4, 1)
    with pytest.raises(EngineError, match=said.format("the end of earlier runs")):
        session.release()


@pytest.mark.parametrize(
    ("refuses", "logged", "said"),
    [
        ("answers no", "", "TensorRT gave no reason"),
        ("answers no", "a plugin waits", "a plugin waits"),
        ("invalidated", "a plugin waits", "a plugin waits"),
        ("invalidated", "", "CUDA error: operation failed due to a previous error during capture"),
    ],
)
def test_a_run_that_cannot_be_recorded_says_why_and_leaves_the_callers_stream(
    tensorrt: TensorRT, refuses: str, logged: str, said: str
) -> None:
    session = session_of(b"", cuda_graph=True)
    session.messages.error(logged)
    tensorrt.engine.refuses_recording = refuses
    with pytest.raises(EngineError) as caught:
        session(images_of(2))
    assert str(caught.value) == (
        f"a run of 2 images cannot be recorded as a CUDA graph: {said}. Leave out --cuda-graph."
    )
    assert tensorrt.current[0].name == "caller"


@pytest.mark.parametrize(("cuda_graph", "times"), [(False, 4), (True, 1)])
def test_a_context_of_one_batch_is_given_its_memory_once(
    tensorrt: TensorRT, monkeypatch: pytest.MonkeyPatch, cuda_graph: bool, times: int
) -> None:
    given, kept = [], Context.set_tensor_address
    monkeypatch.setattr(
        Context, "set_tensor_address", lambda self, name, memory: given.append(name) or kept(self, name, memory)
    )
    session = session_of(b"", cuda_graph=cuda_graph)
    for _ in range(3):
        session(images_of(2))
    assert given.count("images") == times


def test_memory_that_tensorrt_does_not_take_is_an_error(tensorrt: TensorRT) -> None:
    tensorrt.engine.refuses_memory = True
    with pytest.raises(EngineError, match="does not take the memory of images"):
        session_of(b"")(images_of(2))


def test_the_plugin_library_keeps_a_logger_that_outlives_sessions(tensorrt: TensorRT) -> None:
    listening._told_by_plugins.cache_clear()
    first = session_of(b"")
    first_messages, own = first.messages, weakref.ref(tensorrt.runtime_loggers[0])
    tensorrt.plugin_loggers[-1].log(severity(tensorrt, "ERROR"), "first plugin")
    second = session_of(b"")
    tensorrt.plugin_loggers[-1].log(severity(tensorrt, "WARNING"), "second plugin")
    tensorrt.runtime_loggers[0].log(severity(tensorrt, "ERROR"), "first runtime")
    assert (first_messages.errors, second.messages.warnings) == (["first plugin", "first runtime"], ["second plugin"])
    assert second.messages.errors == first_messages.warnings == []

    kept = weakref.ref(tensorrt.plugin_loggers[-1])
    assert tensorrt.plugin_loggers[0] is tensorrt.plugin_loggers[1]
    tensorrt.plugin_loggers.clear()
    tensorrt.runtime_loggers.clear()
    del first, second
    gc.collect()
    assert own() is None
    assert kept() is not None
    listening._told_by_plugins.cache_clear()


def severity(tensorrt: TensorRT, name: str) -> object:
    return getattr(tensorrt.plugin_loggers[0].Severity, name)
