# SPDX-License-Identifier: Apache-2.0
"""Every name of TensorRT that our code uses exists in every version that it supports, or is behind a right check."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from install_tensorrt_bindings import WHEELS
from tensorrt_contract.harness import VERSIONS, bindings, printed
from tensorrt_contract.scan import scan
from tensorrt_contract.verdict import Scan, in_no_version, missing, wrong_checks

ROOT = Path(__file__).parents[3]
SOURCES = (*sorted((ROOT / "runtime" / "tensorrt").glob("*.py")), ROOT / "export" / "ops" / "registering.py")

NAMES_AT_LEAST = 200
"""What a scan of our code finds at least; one that finds nothing must not pass."""
BEHAVIOUR = (
    "runtime/tensorrt/environment.py: version < OLDEST",
    "runtime/tensorrt/environment.py: parse_version(polygraphy.__version__) < OLDEST_POLYGRAPHY",
)
"""Checks of what a version does, or of versions that are not taken, and not of what a version has; as "FILE: TEST"."""

every_version = pytest.mark.parametrize("version", VERSIONS)


def sources() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}


def scanned(version: str) -> Scan:
    return scan(sources(), bindings(version))


@every_version
def test_every_name_our_code_uses_exists(version: str) -> None:
    made = scanned(version)
    assert missing(made) == []
    assert sum(use.exists and use.reachable for use in made.uses) >= NAMES_AT_LEAST


def test_every_version_check_of_our_code_is_needed_and_right() -> None:
    scans = [scanned(version) for version in VERSIONS]
    assert in_no_version(scans) == []
    assert wrong_checks(scans, BEHAVIOUR) == []


def test_the_bindings_are_of_the_least_and_of_the_pinned_version() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (requirement,) = [each for each in extras["tensorrt"] if each.startswith("tensorrt-cu13")]
    (pinned,) = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("tensorrt-cu13==")
    ]
    assert WHEELS[0].version.startswith(requirement.partition(">=")[2] + ".")
    assert WHEELS[-1].version == pinned.partition("==")[2]
    order = [tuple(map(int, version.split("."))) for version in VERSIONS]
    assert order == sorted(order)


@every_version
def test_every_option_of_ours_is_taken_by_the_builder(version: str, tmp_path: Path) -> None:
    code = f"""
        from dataclasses import replace
        import tensorrt as trt
        from metaformer_export.errors import MissingDependencyError
        from metaformer_export.runtime.tensorrt.building import _Work, configuration
        from metaformer_export.runtime.tensorrt.environment import Environment, installed_version
        from metaformer_export.runtime.tensorrt.listening import Messages, Phases, logger_to, monitor_of, recorder_to
        from metaformer_export.runtime.tensorrt.options import HARDWARE, TILINGS, EngineOptions

        class Images:
            name, shape, dtype, is_shape_tensor = "images", (-1, 3, 8, 8), trt.float32, False

        class Network:
            num_inputs = 1
            def get_input(self, index): return Images
            def __iter__(self): return iter(())

        messages = Messages()
        builder = trt.Builder(logger_to(messages))
        builder.error_recorder = recorder_to(messages)
        usual = EngineOptions(timing_cache={str(tmp_path / "timing.cache")!r}, max_tactics=3, workspace_mib=512)
        switches = ("version_compatible", "strip_plan", "refit", "weight_streaming", "tf32")
        every = [replace(usual, tiling=tiling) for tiling in TILINGS]
        every += [replace(usual, hardware_compatible=hardware) for hardware in HARDWARE]
        every += [replace(usual, **{{name: not getattr(usual, name)}}) for name in switches]
        every += [replace(usual, optimization_level=level) for level in range(6)]
        made, refused = [], []
        for options in every:
            work = _Work(Environment(installed_version(), "H100", 90))
            sizes = {{"images": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}}
            monitor = monitor_of(Phases(lambda *told: None))
            try:
                made.append(configuration(options, sizes, monitor, work)(builder, Network()))
            except MissingDependencyError:
                refused.append(options.hardware_compatible)
            else:
                assert work.config is made[-1]
        print(len(made), *{{type(each).__name__ for each in made}}, *refused)
        """
    expected = "17 IBuilderConfig same_compute_capability" if version == VERSIONS[0] else "18 IBuilderConfig"
    assert printed(version, code)[-1] == expected


@every_version
def test_an_engine_without_weights_takes_the_same_ones_back_and_no_others(version: str, tmp_path: Path) -> None:
    """The builder then fuses what it always does: REFIT_IDENTICAL comes with STRIP_PLAN, where REFIT is not set."""
    code = f"""
        import tensorrt as trt
        from metaformer_export.runtime.tensorrt.building import _Work, configuration
        from metaformer_export.runtime.tensorrt.environment import Environment, installed_version
        from metaformer_export.runtime.tensorrt.listening import Messages, Phases, logger_to, monitor_of, recorder_to
        from metaformer_export.runtime.tensorrt.options import EngineOptions

        class Network:
            num_inputs = 0
            def __iter__(self): return iter(())

        flags = []
        trt.IBuilderConfig.set_flag = lambda config, flag: flags.append(flag)
        messages = Messages()
        builder = trt.Builder(logger_to(messages))
        builder.error_recorder = recorder_to(messages)
        for strip_plan, refit in ((True, False), (False, True), (True, True), (False, False)):
            flags.clear()
            options = EngineOptions(
                timing_cache={str(tmp_path / "timing.cache")!r}, strip_plan=strip_plan, refit=refit
            )
            work = _Work(Environment(installed_version(), "H100", 90))
            configuration(options, {{}}, monitor_of(Phases(lambda *told: None)), work)(builder, Network())
            # TensorRT 10 has STRIP_PLAN under two names.
            print("set:", *(name for name in ("REFIT", "STRIP_PLAN") if getattr(trt.BuilderFlag, name) in flags))
        """
    lines = [line for line in printed(version, code) if line.startswith("set:")]
    assert lines == ["set: STRIP_PLAN", "set: REFIT", "set: REFIT STRIP_PLAN", "set:"]


@every_version
def test_every_kernel_of_ours_registers_as_a_plugin(version: str) -> None:
    code = """
        import tensorrt as trt, tensorrt.plugin as trtp
        from metaformer_export.export.ops.catalog import OPS
        from metaformer_export.export.ops.registering import register
        for op in OPS:
            if op.kernel is not None:
                register(op, lambda: 90, lazy=True)
                made = getattr(trtp.op.metaformer, op.op_type)
                ahead_of_time = getattr(made, "aot_impl_func", None) is not None
                print(op.op_type, made.input_tensor_names == list(op.kernel.inputs), ahead_of_time)
        """
    lines = [line.split() for line in printed(version, code)]
    assert ["GlobalFilter", "True", str(version != VERSIONS[0])] in lines
    assert all(line[1:] == ["True", str(version != VERSIONS[0])] for line in lines)
