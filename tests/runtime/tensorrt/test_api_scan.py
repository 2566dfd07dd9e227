# SPDX-License-Identifier: Apache-2.0
"""The scan that test_api_contract.py relies on finds what is wrong in small sources, and nothing else."""

from __future__ import annotations

from textwrap import dedent

import pytest
from tensorrt_contract.api import Parameter
from tensorrt_contract.describe import overloads, split
from tensorrt_contract.harness import VERSIONS, bindings
from tensorrt_contract.scan import scan
from tensorrt_contract.verdict import Scan, missing

OLD, MIDDLE, NEW = VERSIONS
every_version = pytest.mark.parametrize("version", VERSIONS)


def scanned(source: str, version: str) -> Scan:
    return scan({"x.py": dedent(source)}, bindings(version))


def found(source: str, version: str) -> list[str]:
    """What the version has not, without place and version."""
    return [line.partition(" has no ")[2] for line in missing(scanned(source, version))]


@every_version
def test_the_bindings_are_those_of_the_version(version: str) -> None:
    api = bindings(version)
    assert ".".join(str(part) for part in api.version) == version
    assert len(api.members["trt"]) > 200
    assert len(api.members["trt.IBuilderConfig"]) > 30
    assert api.members["trt.IBuilderConfig"]["profiling_verbosity"].type == "trt.ProfilingVerbosity"
    (logger,) = api.constructors["trt.Builder"]
    assert logger.parameters == (Parameter("logger", required=True, keyword=True),)


@every_version
def test_a_wrong_member_of_an_enumeration_is_found(version: str) -> None:
    source = """
        def flags(config):
            import tensorrt as trt
            return trt.BuilderFlag.TF32, trt.BuilderFlag.TF33
        """
    (line,) = missing(scanned(source, version))
    assert line == f"x.py:4: TensorRT {version} has no trt.BuilderFlag.TF33"
    assert [use.what for use in scanned(source, version).uses if use.exists] == [
        "trt.BuilderFlag",
        "trt.BuilderFlag.TF32",
        "trt.BuilderFlag",
    ]


@pytest.mark.parametrize(("version", "gone"), [(OLD, []), (MIDDLE, []), (NEW, ["trt.BuilderFlag.FP16"])])
def test_a_name_that_a_version_dropped_is_found_there_only(version: str, gone: list[str]) -> None:
    assert found("import tensorrt as trt\nFLAG = trt.BuilderFlag.FP16", version) == gone


@every_version
@pytest.mark.parametrize(
    "declared",
    [
        "def f(config: trt.IBuilderConfig):",
        "def f(config: 'trt.IBuilderConfig | None'):",
        "def f(builder: trt.Builder):\n    config = builder.create_builder_config()",
        "def f(logger):\n    config = trt.Builder(logger).create_builder_config()",
        "def f(x):\n    config: trt.IBuilderConfig = x",
        "def f(configs: Sequence[trt.IBuilderConfig]):\n    for config in configs:\n        pass",
        "def made() -> trt.IBuilderConfig: ...\ndef f():\n    config = made()",
        "def f(*configs: trt.IBuilderConfig):\n    config = configs[0]",
        "class Made:\n    config: trt.IBuilderConfig\ndef f(made: Made):\n    config = made.config",
        "def f(x):\n    config = cast('trt.IBuilderConfig', x)",
        "@contextmanager\ndef made() -> Iterator[trt.IBuilderConfig]: ...\ndef f():\n    with made() as config: pass",
    ],
)
def test_a_wrong_method_of_a_known_object_is_found(declared: str, version: str) -> None:
    body = "\n    config.set_flag(trt.BuilderFlag.TF32)\n    config.set_flags(trt.BuilderFlag.TF32)\n"
    assert found(declared + body, version) == ["trt.IBuilderConfig.set_flags"]


@every_version
def test_types_are_followed_through_fields_methods_and_files(version: str) -> None:
    loading = """
        class Engine:
            def __init__(self, engine: trt.ICudaEngine) -> None:
                self.engine = engine
            def context(self) -> trt.IExecutionContext: ...
            @property
            def inspector(self) -> trt.EngineInspector: ...
        def load() -> Engine: ...
        """
    running = """
        from .loading import load
        from . import loading
        def run():
            loaded = load()
            loaded.engine.wrong_field
            loaded.context().wrong_method()
            loading.load().inspector.wrong_property
        """
    sources = {"a/running.py": dedent(running), "a/loading.py": dedent(loading)}
    lines = missing(scan(sources, bindings(version)))
    assert [line.partition(": ")[0] for line in lines] == ["a/running.py:6", "a/running.py:7", "a/running.py:8"]
    assert [line.partition(" has no ")[2] for line in lines] == [
        "trt.ICudaEngine.wrong_field",
        "trt.IExecutionContext.wrong_method",
        "trt.EngineInspector.wrong_property",
    ]


@every_version
@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("builder.create_network(flags=0)", ""),
        ("builder.create_network(0)", ""),
        ("builder.create_network(flag=0)", "0 arguments and flag"),
        ("builder.create_network(0, flags=0)", "1 arguments and flags"),
        ("builder.create_network(0, 0)", "2 arguments"),
        ("builder.create_network(*flags)", ""),
        ("builder.build_serialized_network(network)", "1 arguments"),
        ("trt.Builder(logger=logger)", ""),
        ("trt.Builder(log=logger)", "0 arguments and log"),
        ("trt.Builder()", "0 arguments"),
        ("trt.IBuilderConfig()", "0 arguments"),
        ("trt.Dims((1, 3))", ""),
        ("trtp.register('a::b', lazy_register=True)", ""),
        ("trtp.register('a::b', lazy=True)", "1 arguments and lazy"),
    ],
)
def test_arguments_are_held_against_the_signature(call: str, wrong: str, version: str) -> None:
    function = call.partition("(")[0]
    source = f"def f(builder: trt.Builder, network, logger, flags):\n    {call}\n"
    assert found(source, version) == ([f"{function} that takes {wrong}"] if wrong else [])


@every_version
def test_setting_what_cannot_be_set_is_found(version: str) -> None:
    source = """
        def f(config: trt.IBuilderConfig):
            config.builder_optimization_level = 3
            config.optimization_level = 3
            config.num_optimization_profiles = 1
            setattr(config, "max_tactics", 1)
        """
    assert found(source, version) == [
        "trt.IBuilderConfig.optimization_level",
        "trt.IBuilderConfig.num_optimization_profiles that can be set",
        "trt.IBuilderConfig.max_tactics",
    ]


@every_version
def test_methods_that_tensorrt_would_not_call_are_found(version: str) -> None:
    source = """
        class Monitor(trt.IProgressMonitor):
            def __init__(self):
                trt.IProgressMonitor.__init__(self)
            def phase_start(self, phase_name, parent_phase, num_steps): ...
            def step_completed(self, phase_name, step): ...
            def phase_finish(self): ...
            def _own(self): ...
        class Profiler(trt.IProfiler):
            def report_layer_time(self, layer_name, ms): ...
        class Logger(trt.ILogger):
            def log(self, severity, msg): ...
        class Recorder(trt.IErrorRecorder):
            def num_errors(self): ...
            def report_error(self, code, description): ...
        """
    assert found(source, version) == [
        "trt.IProgressMonitor.step_completed to override",
        "trt.IProgressMonitor.phase_finish that passes 0 arguments",
    ]


@every_version
@pytest.mark.parametrize("line", ["from tensorrt import Builder", "import tensorrt", "import tensorrt as nv"])
def test_an_import_that_the_scan_cannot_follow_is_found(line: str, version: str) -> None:
    assert found(line, version) == [f"`{line}`, which this test cannot follow"]


@every_version
def test_polygraphy_is_held_against_its_signatures(version: str) -> None:
    source = """
        import polygraphy.backend.trt as polygraphy_trt
        from polygraphy.backend.trt import CreateConfig, Profiles
        CreateConfig(tf32=True, profiling_verbosity=None)
        CreateConfig(max_num_tactics=3)
        polygraphy_trt.engine_from_network(None, timing_cache=None)
        """
    assert found(source, version) == [
        "polygraphy.Profiles",
        "CreateConfig that takes 0 arguments and max_num_tactics",
        "polygraphy_trt.engine_from_network that takes 1 arguments and timing_cache",
    ]


def test_signatures_are_read_from_docstrings() -> None:
    text = """
        1. create(self: a.B, x: typing.SupportsInt, y: a.E = <E.ONE: 1>, z: str = 'a, b') -> list[a.C]
        2. create(self: a.B, arg0: tuple[int, int], *args, **kwargs) -> None
        """
    first, second = overloads(text, bound=True)
    assert [(each["name"], each["required"], each["keyword"]) for each in first["parameters"]] == [
        ("x", True, True),
        ("y", False, True),
        ("z", False, True),
    ]
    assert (first["returns"], first["variadic"]) == ("list[a.C]", False)
    assert second["parameters"] == [{"name": "arg0", "required": True, "keyword": False}]
    assert second["variadic"] is True
    assert split("a: dict[int, str], b = (1, 2)") == ["a: dict[int, str]", "b = (1, 2)"]
