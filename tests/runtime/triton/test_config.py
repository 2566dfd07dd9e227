# SPDX-License-Identifier: Apache-2.0
"""What a repository's configurations say, read back from their files by Triton's own schema."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import repositories
from google.protobuf import text_format
from repositories import CLASSES, MAPS, SIZE, configs, deployable, written
from tritonclient.grpc import model_config_pb2 as schema

from metaformer_export.calibration import preprocessing
from metaformer_export.errors import InputError
from metaformer_export.runtime.triton.curve import Curve
from metaformer_export.runtime.triton.deployable import Deployable
from metaformer_export.runtime.triton.options import RepositoryOptions

INPUT = 'input { name: "images" data_type: TYPE_FP32 dims: [3, 24, 32] }'
LOGITS = 'name: "logits" data_type: TYPE_FP32 dims: 10'
ANSWERS = """
output { name: "scores" data_type: TYPE_FP32 dims: 5 }
output { name: "class_ids" data_type: TYPE_INT64 dims: 5 }
output { name: "labels" data_type: TYPE_STRING dims: 5 }
"""
LATEST = "version_policy { latest { num_versions: 1 } }"


def warm_up(batch: int) -> str:
    sample = 'data_type: TYPE_FP32 dims: [3, 24, 32] input_data_file: "pixels"'
    return (
        f'model_warmup {{ name: "batch of {batch}" batch_size: {batch} count: 1 '
        f'inputs {{ key: "images" value {{ {sample} }} }} }}'
    )


def batching(queue: int) -> str:
    """10 s of what the model gives: 8 images in 30 ms, 266.7 a second, unless a test has another curve."""
    return f"""
        dynamic_batching {{
          preferred_batch_size: [4, 8]
          max_queue_delay_microseconds: 2400
          default_queue_policy {{
            timeout_action: REJECT
            default_timeout_microseconds: 10000000
            allow_timeout_override: true
            max_queue_size: {queue}
          }}
        }}
    """


def parsed(text: str) -> Any:
    return text_format.Parse(text, schema.ModelConfig())


def made(of: Deployable, folder: Path, options: RepositoryOptions | None = None) -> dict[str, Any]:
    """Configurations of its repository, by the model's name."""
    return configs(written(of, folder / "repository", options))


def test_an_engine_is_described_whole(tmp_path: Path) -> None:
    said = made(deployable(tmp_path, "tensorrt"), tmp_path)
    assert said["small"] == parsed(f"""
        name: "small" backend: "tensorrt" platform: "tensorrt_plan" max_batch_size: 8
        default_model_filename: "model.plan"
        {INPUT} output {{ {LOGITS} label_filename: "labels.txt" }} {LATEST} {batching(2667)}
        instance_group {{ kind: KIND_GPU count: 1 }} {warm_up(1)} {warm_up(4)} {warm_up(8)}
    """)


@pytest.mark.parametrize(("backend", "kind"), [("onnxruntime", "KIND_AUTO"), ("python", "KIND_CPU")])
def test_an_onnx_file_is_described_whole(tmp_path: Path, backend: Any, kind: str) -> None:
    said = made(deployable(tmp_path, backend), tmp_path)
    assert said["small"] == parsed(f"""
        name: "small" backend: "{backend}" max_batch_size: 8
        {INPUT} output {{ {LOGITS} label_filename: "labels.txt" }} {LATEST} {batching(2667)}
        instance_group {{ kind: {kind} count: 1 }} {warm_up(1)} {warm_up(4)} {warm_up(8)}
    """)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "python"])
def test_the_ensemble_goes_from_an_encoded_image_to_classes(tmp_path: Path, backend: Any) -> None:
    said = made(deployable(tmp_path, backend), tmp_path)
    assert sorted(said) == ["small", "small_ensemble", "small_postprocess", "small_preprocess"]
    image, pixels = ('{ key: "image" value: "image" }', '{ key: "pixels" value: "pixels" }')
    logits = '{ key: "logits" value: "logits" }'
    outputs = " ".join(f'output_map {{ key: "{each}" value: "{each}" }}' for each in ("scores", "class_ids", "labels"))
    assert said["small_ensemble"] == parsed(f"""
        name: "small_ensemble" platform: "ensemble" max_batch_size: 8 {LATEST}
        input {{ name: "image" data_type: TYPE_STRING dims: 1 }} {ANSWERS}
        ensemble_scheduling {{
          step {{ model_name: "small_preprocess" model_version: -1 input_map {image} output_map {pixels} }}
          step {{ model_name: "small" model_version: -1
                  input_map {{ key: "images" value: "pixels" }} output_map {logits} }}
          step {{ model_name: "small_postprocess" model_version: -1 input_map {logits} {outputs} }}
        }}
    """)


def test_the_models_around_it_are_described_whole(tmp_path: Path) -> None:
    said = made(deployable(tmp_path, "tensorrt"), tmp_path, RepositoryOptions(max_image_mb=0.5, max_megapixels=2))
    how = said["small_preprocess"].parameters.pop("preprocessing").string_value
    assert json.loads(how) == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop": 0.875,
        "size": list(SIZE),
        "channels": 3,
    }
    assert said["small_preprocess"] == parsed(f"""
        name: "small_preprocess" backend: "python" max_batch_size: 8 {LATEST}
        input {{ name: "image" data_type: TYPE_STRING dims: 1 }}
        output {{ name: "pixels" data_type: TYPE_FP32 dims: [3, 24, 32] }}
        instance_group {{ kind: KIND_CPU count: 1 }} dynamic_batching {{ }}
        parameters {{ key: "max_image_bytes" value {{ string_value: "500000" }} }}
        parameters {{ key: "max_image_pixels" value {{ string_value: "2000000" }} }}
        model_warmup {{ name: "a photograph" batch_size: 1 count: 1 inputs {{ key: "image" value {{
          data_type: TYPE_STRING dims: 1 input_data_file: "photograph" }} }} }}
    """)
    assert said["small_postprocess"] == parsed(f"""
        name: "small_postprocess" backend: "python" max_batch_size: 8 {LATEST}
        input {{ {LOGITS} }} {ANSWERS}
        instance_group {{ kind: KIND_CPU count: 1 }} dynamic_batching {{ }}
        parameters {{ key: "top_k" value {{ string_value: "5" }} }}
    """)


def test_stage_maps_are_the_ensembles_own_answer(tmp_path: Path) -> None:
    said = made(deployable(tmp_path, features=True), tmp_path)
    assert sorted(said) == ["small", "small_ensemble", "small_preprocess"]
    maps = [(name, schema.TYPE_FP32, list(shape)) for name, shape in MAPS.items()]
    for name in ("small", "small_ensemble"):
        assert [(each.name, each.data_type, list(each.dims)) for each in said[name].output] == maps
        assert not any(each.label_filename for each in said[name].output)
    first, last = said["small_ensemble"].ensemble_scheduling.step
    assert (first.model_name, last.model_name) == ("small_preprocess", "small")
    assert dict(last.input_map) == {"images": "pixels"}
    assert dict(last.output_map) == {"stage0": "stage0", "stage1": "stage1"}
    assert list(tmp_path.glob("repository/**/labels.txt")) == []


def test_float16_inputs_are_preprocessed_and_warmed_up_in_float16(tmp_path: Path) -> None:
    said = made(deployable(tmp_path, data_type="FP16"), tmp_path)
    assert said["small"].input[0].data_type == schema.TYPE_FP16
    assert said["small"].output[0].data_type == schema.TYPE_FP16
    assert said["small_preprocess"].output[0].data_type == schema.TYPE_FP16
    assert said["small_postprocess"].input[0].data_type == schema.TYPE_FP16
    assert said["small_ensemble"].output[0].data_type == schema.TYPE_FP32
    assert {each.inputs["images"].data_type for each in said["small"].model_warmup} == {schema.TYPE_FP16}
    pixels = np.frombuffer((tmp_path / "repository/small/warmup/pixels").read_bytes(), np.float16)
    assert (pixels.size, pixels.min(), pixels.max()) == (3 * 24 * 32, 0.25, 0.25)


def test_warm_ups_are_of_real_data_in_tritons_layout(tmp_path: Path) -> None:
    repository = written(deployable(tmp_path), tmp_path / "repository")
    pixels = np.frombuffer((repository / "small/warmup/pixels").read_bytes(), np.float32)
    assert (pixels.size, pixels.min(), pixels.max()) == (3 * 24 * 32, 0.25, 0.25)
    photograph = (repository / "small_preprocess/warmup/photograph").read_bytes()
    assert struct.unpack("<I", photograph[:4]) == (len(photograph) - 4,)
    assert photograph[4:] == repositories.jpeg()


@pytest.mark.parametrize(
    ("points", "preferred", "delay", "queue", "warm_ups"),
    [
        ((), [], 0, 32, [1]),  # not timed: what the server makes of it
        (((1, 10.0), (2, 20.0), (4, 40.0)), [], 0, 1000, [1]),  # no batch gains anything: what waits is taken, at once
        (((1, 10.0), (2, 16.0)), [2], 1600, 1250, [1, 2]),
        (((1, 100.0), (2, 101.0), (16, 102.0)), [2], 5000, 1569, [1, 2]),  # 16 are more than one batch may have
        (((1, 5000.0),), [], 0, 32, [1]),  # however slow, four full batches may wait
    ],
)
def test_batching_follows_what_was_measured(
    tmp_path: Path,
    points: tuple[tuple[int, float], ...],
    preferred: list[int],
    delay: int,
    queue: int,
    warm_ups: list[int],
) -> None:
    said = made(replace(deployable(tmp_path), curve=Curve(points, "made up")), tmp_path)["small"]
    assert list(said.dynamic_batching.preferred_batch_size) == preferred
    assert said.dynamic_batching.max_queue_delay_microseconds == delay
    assert said.dynamic_batching.default_queue_policy.max_queue_size == queue
    assert [each.batch_size for each in said.model_warmup] == warm_ups


def test_an_engine_is_warmed_up_at_the_end_of_its_profile_too(tmp_path: Path) -> None:
    slow = replace(deployable(tmp_path, "tensorrt"), curve=Curve((), ""))
    assert [each.batch_size for each in made(slow, tmp_path)["small"].model_warmup] == [1, 8]


@pytest.mark.parametrize(
    ("seconds", "delay_ms", "timeout", "delay", "queue"),
    [
        (0.5, 0.0, 500_000, 0, 134),
        (61, 12.5, 61_000_000, 12_500, 16_267),
        (1e-9, None, 1, 2400, 32),  # 0 would be a queue without a limit
    ],
)
def test_queue_limits_are_as_asked(
    tmp_path: Path, seconds: float, delay_ms: float | None, timeout: int, delay: int, queue: int
) -> None:
    options = RepositoryOptions(queue_seconds=seconds, queue_delay_ms=delay_ms)
    said = made(deployable(tmp_path), tmp_path, options)["small"].dynamic_batching
    assert said.max_queue_delay_microseconds == delay
    assert said.default_queue_policy.default_timeout_microseconds == timeout
    assert said.default_queue_policy.max_queue_size == queue
    assert said.default_queue_policy.timeout_action == schema.ModelQueuePolicy.REJECT


def test_the_queue_of_a_very_fast_model_ends_where_the_field_does(tmp_path: Path) -> None:
    fast = replace(deployable(tmp_path), curve=Curve(((1, 0.01),), ""))
    said = made(fast, tmp_path, RepositoryOptions(queue_seconds=1e6))["small"].dynamic_batching
    assert said.default_queue_policy.max_queue_size == 2**32 - 1


@pytest.mark.parametrize(
    ("backend", "device", "kind"),
    [
        ("tensorrt", "auto", schema.ModelInstanceGroup.KIND_GPU),
        ("tensorrt", "cpu", schema.ModelInstanceGroup.KIND_GPU),
        ("onnxruntime", "auto", schema.ModelInstanceGroup.KIND_AUTO),
        ("onnxruntime", "cpu", schema.ModelInstanceGroup.KIND_CPU),
        ("onnxruntime", "gpu", schema.ModelInstanceGroup.KIND_GPU),
        ("python", "auto", schema.ModelInstanceGroup.KIND_CPU),
        ("python", "gpu", schema.ModelInstanceGroup.KIND_GPU),
    ],
)
def test_instances_run_where_the_backend_can(tmp_path: Path, backend: Any, device: Any, kind: int) -> None:
    said = made(deployable(tmp_path, backend), tmp_path, RepositoryOptions(device=device, instances=3))
    assert [(each.kind, each.count) for each in said["small"].instance_group] == [(kind, 3)]
    for name in ("small_preprocess", "small_postprocess"):
        groups = [(each.kind, each.count) for each in said[name].instance_group]
        assert groups == [(schema.ModelInstanceGroup.KIND_CPU, 1)]
    assert len(said["small_ensemble"].instance_group) == 0


@pytest.mark.parametrize(
    ("asked", "model", "others"),
    [
        ("latest:3", "latest { num_versions: 3 }", "latest { num_versions: 3 }"),
        ("all", "all { }", "all { }"),
        # Another model of the ensemble gets a new version only when its own code changes.
        ("specific:2,7", "specific { versions: [2, 7] }", "latest { num_versions: 1 }"),
    ],
)
def test_the_version_policy_is_the_models(tmp_path: Path, asked: str, model: str, others: str) -> None:
    said = made(deployable(tmp_path), tmp_path, RepositoryOptions(versions=asked))
    policies = {name: each.version_policy for name, each in said.items()}
    wanted = {name: parsed(f"version_policy {{ {others} }}").version_policy for name in said}
    assert policies == {**wanted, "small": parsed(f"version_policy {{ {model} }}").version_policy}


def test_answers_are_cached_only_where_that_was_asked_for(tmp_path: Path) -> None:
    plain = made(deployable(tmp_path), tmp_path)
    assert not any(each.HasField("response_cache") for each in plain.values())
    cached = made(deployable(tmp_path / "cached"), tmp_path / "cached", RepositoryOptions(response_cache=True))
    assert [name for name, each in cached.items() if each.response_cache.enable] == ["small"]


def test_cuda_graphs_are_captured_for_one_image_and_preferred_batches(tmp_path: Path) -> None:
    said = made(deployable(tmp_path, "tensorrt"), tmp_path, RepositoryOptions(cuda_graphs=True))["small"]
    graphs = " ".join(
        f'graph_spec {{ batch_size: {batch} input {{ key: "images" value {{ dim: [3, 24, 32] }} }} }}'
        for batch in (1, 4, 8)
    )
    wanted = parsed(f"optimization {{ cuda {{ graphs: true output_copy_stream: true {graphs} }} }}")
    assert said.optimization == wanted.optimization
    plain = made(deployable(tmp_path / "plain", "tensorrt"), tmp_path / "plain")["small"]
    assert not plain.HasField("optimization")


@pytest.mark.parametrize(
    ("precision", "mode"), [("fp32", "FP32"), ("bf16", "FP32"), ("fp16", "FP16"), ("int8", "INT8")]
)
def test_tensorrt_inside_onnx_runtime_is_told_the_precision(tmp_path: Path, precision: Any, mode: str) -> None:
    quantised = replace(deployable(tmp_path), precision=precision)
    said = made(quantised, tmp_path, RepositoryOptions(accelerator="tensorrt"))["small"]
    (accelerator,) = said.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": mode,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp",
        "trt_profile_min_shapes": "images:1x3x24x32",
        "trt_profile_opt_shapes": "images:8x3x24x32",
        "trt_profile_max_shapes": "images:8x3x24x32",
    }
    assert len(said.optimization.execution_accelerators.cpu_execution_accelerator) == 0


def test_settings_of_an_accelerator_are_handed_on(tmp_path: Path) -> None:
    options = RepositoryOptions(accelerator="cuda", accelerator_options=(("use_tf32", "0"), ("gpu_mem_limit", "1")))
    said = made(deployable(tmp_path), tmp_path, options)["small"]
    (accelerator,) = said.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0", "gpu_mem_limit": "1"})
    with pytest.raises(InputError, match="give --accelerator, too"):
        RepositoryOptions(accelerator_options=(("use_tf32", "0"),))


def test_openvino_inside_onnx_runtime_is_a_cpu_accelerator(tmp_path: Path) -> None:
    said = made(deployable(tmp_path), tmp_path, RepositoryOptions(accelerator="openvino", device="cpu"))["small"]
    (accelerator,) = said.optimization.execution_accelerators.cpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("openvino", {})
    assert len(said.optimization.execution_accelerators.gpu_execution_accelerator) == 0


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("onnxruntime", RepositoryOptions(cuda_graphs=True), "--cuda-graphs goes with the tensorrt backend, and small"),
        ("python", RepositoryOptions(cuda_graphs=True), "is served by python"),
        ("tensorrt", RepositoryOptions(accelerator="tensorrt"), "--accelerator tensorrt goes with the onnxruntime"),
        ("python", RepositoryOptions(accelerator="openvino"), "--accelerator openvino goes with the onnxruntime"),
    ],
)
def test_what_a_backend_has_not_is_refused(
    tmp_path: Path, backend: Any, options: RepositoryOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        written(deployable(tmp_path, backend), tmp_path / "repository", options)


def test_one_engine_goes_without_compute_capabilities_and_two_are_told_apart_by_them(tmp_path: Path) -> None:
    one = made(deployable(tmp_path, "tensorrt"), tmp_path)["small"]
    assert (one.default_model_filename, dict(one.cc_model_filenames)) == ("model.plan", {})
    repository = written(repositories.two_engines(tmp_path / "two"), tmp_path / "two" / "repository")
    two = configs(repository)["small"]
    assert two.default_model_filename == "model.plan"
    assert dict(two.cc_model_filenames) == {"9.0": "model.plan", "8.0": "sm_80.plan"}
    assert (repository / "small/1/model.plan").read_bytes() == b"an engine"
    assert (repository / "small/1/sm_80.plan").read_bytes() == b"another engine"


def test_capabilities_of_two_digits_are_written_as_triton_reads_them(tmp_path: Path) -> None:
    two = repositories.two_engines(tmp_path)
    engines = {"model.plan": repositories.engine(120), "sm_80.plan": repositories.engine(103)}
    said = made(replace(two, engines=engines), tmp_path)["small"]
    assert dict(said.cc_model_filenames) == {"12.0": "model.plan", "10.3": "sm_80.plan"}


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_are_beside_the_model_and_in_the_version_that_answers_with_them(tmp_path: Path, labelled: bool) -> None:
    of = deployable(tmp_path)
    names = ("tench, Tinca", "crème brûlée", *(f"class {i}" for i in range(8)))
    repository = written(replace(of, labels=names if labelled else ()), tmp_path / "repository")
    found = sorted(str(path.relative_to(repository)) for path in repository.rglob("labels.txt"))
    assert found == (["small/labels.txt", "small_postprocess/1/labels.txt"] if labelled else [])
    assert configs(repository)["small"].output[0].label_filename == ("labels.txt" if labelled else "")
    for path in found:
        assert (repository / path).read_bytes().decode() == "".join(f"{name}\n" for name in names)


@pytest.mark.parametrize(("asked", "k"), [(1, 1), (7, 7), (50, CLASSES)])
def test_no_more_classes_are_answered_with_than_there_are(tmp_path: Path, asked: int, k: int) -> None:
    said = made(deployable(tmp_path), tmp_path, RepositoryOptions(top_k=asked))
    for name in ("small_postprocess", "small_ensemble"):
        assert [list(each.dims) for each in said[name].output] == [[k], [k], [k]]
    assert said["small_postprocess"].parameters["top_k"].string_value == str(k)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "python"])
def test_a_version_holds_the_files_of_its_backend(tmp_path: Path, backend: Any) -> None:
    repository = written(deployable(tmp_path, backend), tmp_path / "repository")
    model = {"tensorrt": ["model.plan"], "onnxruntime": ["model.onnx"], "python": ["model.onnx", "model.py"]}[backend]
    names = {each.name: sorted(path.name for path in (each / "1").iterdir()) for each in repository.iterdir()}
    assert names == {
        "small": ["export.json", *model],
        "small_preprocess": ["model.py", "preprocessing.py"],
        "small_postprocess": ["labels.txt", "model.py"],
        "small_ensemble": [],
    }
    ours = Path(preprocessing.__file__).read_bytes()
    assert (repository / "small_preprocess/1/preprocessing.py").read_bytes() == ours


def test_beside_a_version_stands_what_it_is_and_what_its_batching_comes_from(tmp_path: Path) -> None:
    of = deployable(tmp_path, "tensorrt")
    of.manifest["candidates"] = [{"rms_rel": float("nan")}]
    of.manifest["tensorrt"]["options"]["timing_cache"] = Path("timing.cache")  # as an export has it
    text = (written(of, tmp_path / "repository") / "small/1/export.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON's")

    told = json.loads(text, parse_constant=refuse)
    assert told["inputs"] == [{"name": "images", "data_type": "FP32", "dims": [3, 24, 32]}]
    assert told["outputs"] == [{"name": "logits", "data_type": "FP32", "dims": [10]}]
    assert told["engines"]["model.plan"]["architecture"] == 90
    assert told["manifest"]["tensorrt"]["options"]["timing_cache"] == "timing.cache"
    assert told["manifest"]["candidates"] == [{"rms_rel": None}]
    assert "outputs" not in told["manifest"]
    points = [{"batch": batch, "ms": ms} for batch, ms in ((1, 10.0), (2, 18.0), (4, 24.0), (8, 30.0))]
    assert told["latencies"] == {"measured": "made up", "points": points}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backend": "torch"}, "--backend 'torch' is not known; use auto, tensorrt, onnxruntime, python"),
        ({"instances": 0}, "--instances must be above 0; got 0"),
        ({"instances": 10**10}, "--instances is at most 1000; got 10000000000"),
        ({"top_k": 0}, "--top-k must be above 0"),
        ({"queue_seconds": float("nan")}, "--queue-timeout must be above 0; got nan"),
        ({"queue_seconds": float("inf")}, "--queue-timeout is at most 1e.06; got inf"),
        ({"queue_delay_ms": -1.0}, "--queue-delay must be 0 or more; got -1.0"),
        ({"queue_delay_ms": float("nan")}, "--queue-delay must be 0 or more; got nan"),
        ({"queue_delay_ms": float("inf")}, "--queue-delay is at most 1e.06; got inf"),
        ({"max_image_mb": float("inf")}, "--max-image-mb is at most 100000; got inf"),
        ({"max_megapixels": 0.0}, "--max-megapixels must be above 0"),
        ({"name": "../up"}, "--name takes letters, digits, dots, dashes and underscores; got '../up'"),
        ({"name": ".hidden"}, "--name takes letters"),
        ({"versions": "latest:0"}, "--version-policy takes latest:N, all or specific:N,M; got 'latest:0'"),
        ({"versions": "specific:"}, "--version-policy takes"),
        ({"versions": "latest"}, "--version-policy takes"),
        ({"accelerator": "tensorrt", "device": "cpu"}, "--accelerator tensorrt does not go with --device cpu"),
        ({"accelerator": "openvino", "device": "gpu"}, "--accelerator openvino does not go with --device gpu"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RepositoryOptions(**wrong)
