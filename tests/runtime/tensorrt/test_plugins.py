# SPDX-License-Identifier: Apache-2.0
"""Our kernels as TensorRT's plugins: made by the real bindings from a node's attributes, asked what TensorRT asks."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest
from tensorrt_contract.harness import VERSIONS, printed

from metaformer_export.errors import InputError, MissingDependencyError
from metaformer_export.runtime.tensorrt import building
from metaformer_export.runtime.tensorrt.environment import Environment
from metaformer_export.runtime.tensorrt.options import HARDWARE, EngineOptions
from metaformer_export.runtime.tensorrt.plugins import kernel_architecture, register_plugins

every_version = pytest.mark.parametrize("version", VERSIONS)
ahead_of_time = pytest.mark.parametrize("version", VERSIONS[1:])

SETTING = """
    import sys
    import numpy as np
    import tensorrt as trt
    import tensorrt.plugin as trtp
    from metaformer_export.export.ops.catalog import OPS, find
    from metaformer_export.runtime.tensorrt.plugins import register_plugins

    tensors = sys.modules["tensorrt_bindings.plugin._tensor"]

    class Registry:
        made = {}
        def register_creator(self, creator, namespace):
            assert (creator.name, namespace) not in self.made
            self.made[creator.name, namespace] = creator
        def get_creator(self, name, version, namespace):
            return self.made[name, namespace]

    trt.get_plugin_registry = Registry

    class Size:
        '''A number, or None for one that is not known, as TensorRT's expression of it.'''
        def __init__(self, value): self.value = value
        def is_constant(self): return self.value is not None
        def get_constant_value(self): return self.value

    class Builder:
        def constant(self, value): return Size(value)
        def operation(self, kind, one, other):
            if one.value is None or other.value is None:
                return Size(None)
            kinds = trt.DimensionOperation
            results = {kinds.SUM: one.value + other.value, kinds.SUB: one.value - other.value}
            results |= {kinds.PROD: one.value * other.value, kinds.CEIL_DIV: -(-one.value // max(other.value, 1))}
            results |= {kinds.FLOOR_DIV: one.value // max(other.value, 1)}
            return Size(results[kind])

    class Names:
        '''TensorRT's, with our expression in place of its own, which cannot be made.'''
        IDimensionExpr = Size
        def __getattr__(self, name): return getattr(trt, name)

    tensors.trt = Names()
    getattr(tensors, "SymIntExpr", tensors.ShapeExpr)._exprBuilder = Builder()

    def described(shape, dtype):
        made = trtp.TensorDesc()
        made.dtype, made.shape_expr = dtype, trtp.ShapeExprs(len(shape))
        for index, size in enumerate(shape):
            made.shape_expr[index] = trtp.ShapeExpr(Size(size))
        made._immutable = True
        return made

    FLOAT, HALF, BF16, INT64 = trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16, trt.DataType.INT64
    NODES = {
        "GlobalFilter": ([((None, 16, 14, 14), HALF), ((16, 14, 8, 2), FLOAT)], dict(height=14, width=14)),
        "BalancedClustering": ([((None, 12, 98, 32), FLOAT)], dict(cluster_size=49, levels=1)),
        "ClusterAttention": (
            [((None, 12, 196, 32), HALF)] * 3 + [((None, 12, 196), INT64)],
            dict(cluster_size=49, overlap=20, scale=0.17677669),
        ),
        "LocalAttention": ([((None, 128, 28, 28), BF16)] * 3, dict(heads=4, window=7, stride=2, scale=0.2)),
    }

    def request(wanted):
        '''How a plugin is to run, where there is a choice.'''
        return [getattr(trt.QuickPluginCreationRequest, wanted)] if hasattr(trt, "QuickPluginCreationRequest") else []

    def created(name, attributes, wanted="PREFER_AOT"):
        '''A plugin from fields such as the parser makes: arrays of one number.'''
        of = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
        arrays = [np.array([value], of[type(value)][0]) for value in attributes.values()]
        fields = [
            trt.PluginField(key, array, of[type(value)][1])
            for (key, value), array in zip(attributes.items(), arrays)
        ]
        creator = Registry().get_creator(name, "1", "metaformer")
        return creator.create_plugin(
            name, "metaformer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD, *request(wanted)
        )
"""
"""A process with the real bindings in which plugins can be registered, made and asked without TensorRT."""


def lines_of(version: str, code: str) -> list[str]:
    return printed(version, dedent(SETTING) + dedent(code))


@every_version
def test_every_plugin_is_created_with_the_attributes_of_its_node(version: str) -> None:
    code = """
        register_plugins(list(NODES), 90)
        for name, (_, attributes) in NODES.items():
            made = created(name, attributes)
            kinds = [each.dtype.name for each in made.attrs.values()]
            near = all(abs(made.attrs[key].item() - value) < 1e-7 for key, value in attributes.items())
            print(name, type(made).__name__, list(made.attrs) == list(find(name).kernel.attributes), near, *kinds)
        """
    kind = "_TemplatePlugin" if version == VERSIONS[0] else "_TemplateAOTPlugin"
    assert lines_of(version, code) == [
        f"GlobalFilter {kind} True True int32 int32",
        f"BalancedClustering {kind} True True int32 int32",
        f"ClusterAttention {kind} True True int32 int32 float32",
        f"LocalAttention {kind} True True int32 int32 int32 float32",
    ]


@every_version
def test_every_plugin_says_what_it_gives_and_takes(version: str) -> None:
    code = """
        register_plugins(list(NODES), 90)
        for name, (inputs, attributes) in NODES.items():
            made = created(name, attributes)
            ranks = [len(shape) for shape, _ in inputs]
            (early,) = made.get_output_data_types([dtype for _, dtype in inputs], ranks)
            given = [described(*each) for each in inputs]
            output = made.register_function(*given, **made.attrs)
            assert output.dtype == early
            print(name, early.name, [each._expr.value for each in output.shape_expr])
            values = [made.attrs[key] for key in made.autotune_attr_names]
            (tuned,) = made.autotune_function(*given, *values, [output])
            for each in tuned._get_combinations():
                print(*(kind.name for kind in each.types), {layout.name for layout in each.layouts})
        """
    linear = "{'LINEAR'}"
    assert lines_of(version, code) == [
        "GlobalFilter HALF [None, 16, 14, 14]",
        *(f"{each} FLOAT {each} {linear}" for each in ("FLOAT", "HALF", "BF16")),
        "BalancedClustering INT64 [None, 12, 98]",
        *(f"{each} INT64 {linear}" for each in ("FLOAT", "HALF", "BF16")),
        "ClusterAttention HALF [None, 12, 196, 32]",
        *(f"{each} {each} {each} INT64 {each} {linear}" for each in ("FLOAT", "HALF", "BF16")),
        "LocalAttention BF16 [None, 128, 14, 14]",
        *(f"{each} {each} {each} {each} {linear}" for each in ("FLOAT", "HALF", "BF16")),
    ]


@ahead_of_time
def test_every_plugin_gives_a_kernel_its_launch_and_the_batch(version: str) -> None:
    """As get_launch_params calls it: attributes by their place in the node."""
    code = """
        register_plugins(list(NODES), 80)
        for name, (inputs, attributes) in NODES.items():
            made = created(name, attributes)
            given = [described(*each) for each in inputs]
            output = made.register_function(*given, **made.attrs)
            kernel, ptx, launch, scalars = made.aot_impl_function(*given, *made.attrs.values(), [output], 0)
            assert isinstance(launch, trtp.KernelLaunchParams) and isinstance(scalars, trtp.SymIntExprs)
            assert f".visible .entry {kernel}(" in ptx and ".target sm_80\\n" in ptx
            grid = [getattr(launch, "grid_" + axis)._expr.value for axis in "xyz"]
            block = [getattr(launch, "block_" + axis)._expr.value for axis in "xyz"]
            small = launch.shared_mem._expr.value <= 48 * 1024
            print(kernel, grid, block, small, *(type(each).__name__ for each in scalars))
        """
    assert lines_of(version, code) == [
        "global_filter [None, 16, 1] [128, 1, 1] True SymInt32",
        "balanced_clustering [None, 12, 1] [64, 1, 1] True SymInt32",
        "cluster_attention [None, 12, 4] [128, 1, 1] True SymInt32",
        "local_attention [None, 4, 4] [128, 1, 1] True SymInt32",
    ]


@ahead_of_time
def test_a_second_gpu_in_one_process_gets_kernels_of_its_own(version: str) -> None:
    """TensorRT's registry takes each plugin once."""
    code = """
        shape, attributes = [((None, 8, 7, 7), FLOAT), ((8, 7, 4, 2), FLOAT)], dict(height=7, width=7)
        for architecture in (90, 80, 80, 120):
            register_plugins(["GlobalFilter"], architecture)
            made = created("GlobalFilter", attributes)
            given = [described(*each) for each in shape]
            output = made.register_function(*given, **made.attrs)
            _, ptx, *_ = made.aot_impl_function(*given, *made.attrs.values(), [output], 0)
            print(ptx[ptx.index(".target") :].split()[1], *Registry.made)
        """
    once = "('GlobalFilter', 'metaformer')"
    assert lines_of(version, code) == [f"{target} {once}" for target in ("sm_90a", "sm_80", "sm_80", "sm_120a")]


@every_version
def test_run_by_python_a_plugin_launches_its_kernel_in_tensorrts_stream(version: str) -> None:
    """Triton's launcher, which needs a GPU, is stood in for; what reaches it is ours."""
    code = """
        from contextlib import contextmanager
        from dataclasses import replace
        import torch
        from metaformer_export.export.ops.registering import register

        class Launcher:
            def __getitem__(self, grid):
                def launch(*given, num_warps, **constants):
                    for each in given:
                        print("batch", each) if isinstance(each, int) else print(each.data_ptr(), each.dtype)
                    print(grid, num_warps, constants["stride"], constants["window"], constants["heads"])
                return launch

        @contextmanager
        def stream(of):
            print("stream", of)
            yield
            print("left")

        torch.cuda.stream, torch.cuda.ExternalStream = stream, lambda address: address

        class Tensor:
            def __init__(self, address, shape, dtype):
                self.data_ptr, self.shape, self.dtype = address, shape, dtype

        op = find("LocalAttention")
        register(replace(op, kernel=replace(op.kernel, load=Launcher)), lambda: 90)
        made = created("LocalAttention", NODES["LocalAttention"][1], "STRICT_JIT")
        inputs = [Tensor(address, (3, 128, 28, 28), BF16) for address in (16, 32, 48)]
        values = [made.attrs[key] for key in made.impl_attr_names]
        made.impl_function(*inputs, *values, [Tensor(64, (3, 128, 14, 14), BF16)], stream=7)
        """
    assert lines_of(version, code) == [
        "stream 7",
        *(f"{address} torch.bfloat16" for address in (16, 32, 48)),
        "batch 3",
        "64 torch.bfloat16",
        "(3, 4, 4) 4 2 7 4",
        "left",
    ]


@every_version
def test_run_by_python_a_plugin_comes_back_from_the_engine_with_its_attributes(version: str) -> None:
    code = """
        register_plugins(list(NODES), 90)
        for name, (_, attributes) in NODES.items():
            made = created(name, attributes, "STRICT_JIT")
            creator = Registry().get_creator(name, "1", "metaformer")
            given = made.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME, *request("STRICT_JIT")
            again = creator.create_plugin(name, "metaformer", *given)
            print(name, {key: round(value.item(), 6) for key, value in again.attrs.items()})
        """
    assert lines_of(version, code) == [
        "GlobalFilter {'height': 14, 'width': 14}",
        "BalancedClustering {'cluster_size': 49, 'levels': 1}",
        "ClusterAttention {'cluster_size': 49, 'overlap': 20, 'scale': 0.176777}",
        "LocalAttention {'heads': 4, 'window': 7, 'stride': 2, 'scale': 0.2}",
    ]


def test_an_op_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="no mixer op is called Fourier"):
        register_plugins(["GlobalFilter", "Fourier"], 90)


def test_a_gpu_that_triton_does_not_know_is_refused_before_anything_is_registered() -> None:
    with pytest.raises(InputError, match=r"no kernel can be compiled for compute capability 13\.0: Triton "):
        register_plugins(["GlobalFilter"], 130)


def test_without_triton_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r'Triton is not installed; pip install "metaformer-export\[tens'):
        register_plugins(["GlobalFilter"], 90)
    register_plugins([], 90)


def test_kernels_of_an_engine_for_other_gpus_are_of_the_oldest() -> None:
    made = {each: kernel_architecture(EngineOptions(hardware_compatible=each), 90) for each in HARDWARE}
    assert made == {"none": 90, "ampere_plus": 80, "same_compute_capability": 90}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """What a build on an H100 registers; the build itself is stood in for."""
    found: list[tuple[tuple[str, ...], int]] = []

    def registered(names: Sequence[str], architecture: int) -> None:
        found.append((tuple(names), architecture))

    monkeypatch.setattr(building, "environment", lambda: Environment((11, 4, 0, 106), "H100", 90))
    monkeypatch.setattr(building, "register_plugins", registered)
    monkeypatch.setattr(building, "_plan", lambda *given: b"plan")
    return found


def test_a_build_has_plugins_compiled_for_all_gpus_that_the_engine_is_for(
    asked: list[tuple[tuple[str, ...], int]],
) -> None:
    for hardware in HARDWARE:
        options = EngineOptions(hardware_compatible=hardware)
        assert building.build(Path("model.onnx"), options, (1, 1, 1), plugins=["GlobalFilter"]).plan == b"plan"
    assert asked == [(("GlobalFilter",), architecture) for architecture in (90, 80, 90)]


def test_two_engines_are_built_one_after_the_other(
    asked: list[tuple[tuple[str, ...], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second build would otherwise be timed against the first, and change what its plugins are compiled for."""
    order: list[str] = []

    def plan(source: Path, *rest: object) -> bytes:
        order.append(f"begin {source} of {asked[-1][1]}")
        time.sleep(0.2)
        order.append(f"end {source}")
        return b"plan"

    monkeypatch.setattr(building, "_plan", plan)
    builds = [
        threading.Thread(
            target=building.build, args=(Path(hardware), EngineOptions(hardware_compatible=hardware), (1, 1, 1))
        )
        for hardware in ("none", "ampere_plus")
    ]
    for each in builds:
        each.start()
    for each in builds:
        each.join()
    one, other = ["begin none of 90", "end none"], ["begin ampere_plus of 80", "end ampere_plus"]
    assert order in (one + other, other + one)
