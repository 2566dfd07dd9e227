# SPDX-License-Identifier: Apache-2.0
"""What runs in TensorRT's bindings without TensorRT is judged as TensorRT would, Polygraphy and plugins included."""

from __future__ import annotations

from textwrap import dedent

import pytest
from install_tensorrt_bindings import Wheel
from tensorrt_contract.harness import VERSIONS, bindings, printed, run_in_bindings

every_version = pytest.mark.parametrize("version", VERSIONS)


@every_version
def test_the_harness_loads_the_version_and_this_package(version: str) -> None:
    code = """
        import sys
        import tensorrt as trt, tensorrt.plugin as trtp
        import metaformer_export.runtime.session
        print(trt.__version__, trtp.TensorDesc.__name__, "torch" in sys.modules)
        """
    assert printed(version, code) == [f"{version} TensorDesc False"]


@every_version
def test_the_harness_judges_names_and_types_like_tensorrt(version: str) -> None:
    code = """
        import tensorrt as trt
        config = trt.Builder(trt.Logger()).create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for name, value in (("profiling_verbosity", 2), ("max_tactics", 1), ("num_optimization_profiles", 1)):
            try:
                setattr(config, name, value)
            except (TypeError, AttributeError) as error:
                print(name, type(error).__name__)
        try:
            config.set_flag("TF32")
        except TypeError:
            print("flag")
        print(type(config).__name__, hasattr(trt.BuilderFlag, "FP16"))
        """
    assert printed(version, code) == [
        "profiling_verbosity TypeError",
        "max_tactics AttributeError",
        "num_optimization_profiles AttributeError",
        "flag",
        f"IBuilderConfig {version != VERSIONS[-1]}",
    ]


@every_version
def test_the_harness_makes_what_a_builder_and_a_session_need(version: str) -> None:
    code = """
        import tensorrt as trt
        class Monitor(trt.IProgressMonitor):
            def __init__(self): trt.IProgressMonitor.__init__(self)
            def phase_start(self, phase_name, parent_phase, num_steps): pass
            def step_complete(self, phase_name, step): return True
            def phase_finish(self, phase_name): pass
        logger = trt.Logger()
        builder = trt.Builder(logger)
        config = builder.create_builder_config()
        config.progress_monitor = Monitor()
        profile = builder.create_optimization_profile()
        profile.set_shape("images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        engine = trt.Runtime(logger).deserialize_cuda_engine(b"engine")
        context = engine.create_execution_context()
        made = [config.create_timing_cache(b""), profile, network, trt.OnnxParser(network, logger), engine, context]
        print(*(type(each).__name__ for each in made), context.set_input_shape("images", (1, 3, 8, 8)))
        """
    assert printed(version, code) == [
        "ITimingCache IOptimizationProfile INetworkDefinition OnnxParser ICudaEngine IExecutionContext True"
    ]


@every_version
def test_polygraphy_configures_a_builder_in_every_version(version: str) -> None:
    code = """
        import tensorrt as trt
        from types import SimpleNamespace
        from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile
        from polygraphy.logger import G_LOGGER
        G_LOGGER.module_severity = G_LOGGER.ULTRA_VERBOSE + 100
        builder = trt.Builder(trt.Logger())
        images = SimpleNamespace(name="images", shape=(-1, 3, 8, 8), dtype=trt.float32, is_shape_tensor=False)
        network = SimpleNamespace(num_inputs=1, get_input=lambda index: images)
        profile = Profile().add("images", min=(1, 3, 8, 8), opt=(2, 3, 8, 8), max=(4, 3, 8, 8))
        print(type(profile.fill_defaults(network).to_trt(builder, network)).__name__)
        settings = dict(
            tf32=True,
            profiles=[profile],
            memory_pool_limits={trt.MemoryPoolType.WORKSPACE: 1 << 30},
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
            builder_optimization_level=4,
            tiling_optimization_level=trt.TilingOptimizationLevel.FAST,
            hardware_compatibility_level=trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            version_compatible=True,
            strip_plan=True,
            refittable=True,
        )
        config = CreateConfig(**settings)
        print(type(PostprocessConfig(config, lambda builder, network, config: None)(builder, None)).__name__)
        for name, value in (("fp16", True), ("precision_constraints", "obey"), ("quantization_flags", [])):
            try:
                CreateConfig(**{name: value})(builder, None)
            except Exception as error:
                print(name, type(error).__name__)
        """
    refused = ["fp16 PolygraphyException", "precision_constraints PolygraphyException"]
    refused += ["quantization_flags AttributeError"]
    expected = ["IOptimizationProfile", "IBuilderConfig", *(refused if version == VERSIONS[-1] else [])]
    assert printed(version, code) == expected


PLUGIN = """
    from typing import Tuple
    import tensorrt as trt
    import tensorrt.plugin as trtp

    @trtp.register("metaformer::Doubled", lazy_register=True)
    def doubled(x: trtp.TensorDesc, times: int) -> trtp.TensorDesc:
        return x.like()

    @trtp.autotune("metaformer::Doubled")
    def tactics(x: trtp.TensorDesc, times: int, outputs: Tuple[trtp.TensorDesc]) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32|FP16, FP32|FP16", "LINEAR")]

    @trtp.impl("metaformer::Doubled")
    def run(x: trtp.Tensor, times: int, outputs: Tuple[trtp.Tensor], stream: int) -> None: ...

    def refused(decorator, function):
        try:
            decorator(function)
        except ValueError as error:
            print(*str(error).split()[:6])
"""


@every_version
def test_plugins_are_validated_by_tensorrt_itself(version: str) -> None:
    code = """
    def untyped(x, times: int) -> trtp.TensorDesc: ...
    def attribute_first(times: int, x: trtp.TensorDesc) -> trtp.TensorDesc: ...
    def returns_nothing(x: trtp.TensorDesc, times: int): ...
    def listed(x: trtp.TensorDesc, times: list) -> trtp.TensorDesc: ...
    for each in (untyped, attribute_first, returns_nothing, listed):
        refused(trtp.register(f"metaformer::{each.__name__}", lazy_register=True), each)

    def wrong_type(x: trtp.Tensor, times: float, outputs: Tuple[trtp.Tensor], stream: int) -> None: ...
    def wrong_order(x: trtp.Tensor, outputs: Tuple[trtp.Tensor], times: int, stream: int) -> None: ...
    for each in (wrong_type, wrong_order):
        refused(trtp.impl("metaformer::Doubled"), each)
    print(trtp.op.metaformer.Doubled.plugin_id)
    """
    assert printed(version, dedent(PLUGIN) + dedent(code)) == [
        "Argument x does not have a",
        "TensorDescs args should come first, followed",
        "No return annotation found for register",
        "Attribute 'times' of type <class 'list'>",
        "Attribute 'times' has a type annotation",
        "Signature of the impl function '(x:",
        "metaformer::Doubled",
    ]


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_ahead_of_time_plugins_are_validated_by_tensorrt_itself(version: str) -> None:
    code = """
    assert hasattr(trt, "QuickPluginCreationRequest")
    Made = Tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]

    @trtp.aot_impl("metaformer::Doubled")
    def ahead(x: trtp.TensorDesc, times: int, outputs: Tuple[trtp.TensorDesc], tactic: int) -> Made: ...

    def without_tactic(x: trtp.TensorDesc, times: int, outputs: Tuple[trtp.TensorDesc]) -> Made: ...
    def without_annotation(x: trtp.TensorDesc, times: int, outputs: Tuple[trtp.TensorDesc], tactic: int): ...
    for each in (without_tactic, without_annotation):
        trtp.op.metaformer.Doubled.aot_impl_func = None
        refused(trtp.aot_impl("metaformer::Doubled"), each)
    print(ahead.__name__)
    """
    assert printed(version, dedent(PLUGIN) + dedent(code)) == [
        "Signature of the aot_impl function '(x:",
        "No return annotation found for aot_impl",
        "ahead",
    ]


def test_the_oldest_version_has_no_ahead_of_time_plugins() -> None:
    assert [bindings(version).has("trt.QuickPluginCreationRequest") for version in VERSIONS] == [False, True, True]


def test_a_version_without_a_wheel_for_this_python_is_known() -> None:
    assert [Wheel("any", "1.0", newest).exists for newest in (None, (3, 10), (3, 99))] == [True, False, True]


@pytest.mark.parametrize("setting", ["", "0", "false", "true", "1"])
def test_missing_bindings_are_skipped_and_fail_in_ci(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", setting)
    outcome = pytest.fail.Exception if setting in ("true", "1") else pytest.skip.Exception
    with pytest.raises(outcome, match=r"no bindings of TensorRT 1\.0; python tests/install_tensorrt_bindings\.py"):
        run_in_bindings("1.0", "")
