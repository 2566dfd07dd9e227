# SPDX-License-Identifier: Apache-2.0
"""A name that some versions of TensorRT lack is behind a check of the version, and the check is a right one."""

from __future__ import annotations

from textwrap import dedent

import pytest
from tensorrt_contract.harness import VERSIONS, bindings
from tensorrt_contract.scan import scan
from tensorrt_contract.verdict import Scan, in_no_version, missing, wrong_checks

OLD, MIDDLE, NEW = VERSIONS


def scanned(source: str, version: str) -> Scan:
    return scan({"x.py": dedent(source)}, bindings(version))


def found(source: str, version: str) -> list[str]:
    """What the version has not, without place and version."""
    return [line.partition(" has no ")[2] for line in missing(scanned(source, version))]


def checks(source: str, behaviour: tuple[str, ...] = ()) -> list[str]:
    return wrong_checks([scanned(source, version) for version in VERSIONS], behaviour)


@pytest.mark.parametrize(("version", "wrong"), [(OLD, ["trtp.aot_impl"]), (MIDDLE, []), (NEW, [])])
def test_a_new_name_without_a_version_check_is_found_where_it_lacks(version: str, wrong: list[str]) -> None:
    assert found("import tensorrt.plugin as trtp\nf = trtp.aot_impl", version) == wrong


GUARDED = {
    "inside": "if version >= (10, 9):\n        trtp.aot_impl('a::b')",
    "mirrored": "if (10, 9) <= version:\n        trtp.aot_impl('a::b')",
    "a call": "if version()[:2] >= (10, 9):\n        trtp.aot_impl('a::b')",
    "a constant": "if builder_version >= AOT:\n        trtp.aot_impl('a::b')",
    "the other side": "if version < (10, 9):\n        pass\n    else:\n        trtp.aot_impl('a::b')",
    "after one that leaves": "if version < (10, 9):\n        raise ValueError\n    trtp.aot_impl('a::b')",
    "with more": "if fast and not version < (10, 9):\n        trtp.aot_impl('a::b')",
    "an expression": "f = trtp.aot_impl('a::b') if version >= (10, 9) else None",
    "a conjunction": "f = version >= (10, 9) and trtp.aot_impl('a::b')",
    "a comprehension": "f = [trtp.aot_impl(name) for name in names if version >= (10, 9)]",
    "a function": "if is_at_least(version, (10, 9)):\n        trtp.aot_impl('a::b')",
    "hasattr": "if hasattr(trt, 'QuickPluginCreationRequest'):\n        trtp.aot_impl('a::b')",
    "after hasattr": "if not hasattr(trtp, 'aot_impl'):\n        return\n    trtp.aot_impl('a::b')",
}


@pytest.mark.parametrize("form", GUARDED)
def test_a_new_name_behind_a_version_check_is_right(form: str) -> None:
    source = f"AOT = (10, 9)\ndef f(version, fast, names, builder_version):\n    {GUARDED[form]}\n"
    assert [found(source, version) for version in VERSIONS] == [[], [], []]
    assert checks(source) == []
    unreached = [use.what for use in scanned(source, OLD).uses if not use.reachable and not use.exists]
    assert unreached[0] == "trtp.aot_impl"


PRIVATE = """
class _Plugin:
    def ahead_of_time(self):
        return self._launch()
    def _launch(self):
        return trtp.KernelLaunchParams()
def _scalars():
    return trtp.SymIntExprs(1)
def register(plugin: _Plugin):
    if hasattr(trtp, "aot_impl"):
        trtp.aot_impl("a::b")(plugin.ahead_of_time)
        _scalars()
"""


def test_a_private_function_is_right_if_a_version_check_stands_before_every_use_of_it() -> None:
    assert [found(PRIVATE, version) for version in VERSIONS] == [[], [], []]
    assert [len(scanned(PRIVATE, version).uses) for version in VERSIONS] == [4, 7, 7]
    used = PRIVATE + "\ndef run(plugin: _Plugin):\n    plugin._launch()\n"
    assert [found(used, version) for version in VERSIONS] == [["trtp.KernelLaunchParams"], [], []]
    public = PRIVATE.replace("_scalars", "scalars")
    assert [found(public, version) for version in VERSIONS] == [["trtp.SymIntExprs"], [], []]


LENIENT = (
    "version > (10, 8)",
    "version < (10, 9)",
    "version >= (10, 2)",
    "fast or version >= (10, 9)",
    "fast",
    "other >= (10, 9)",
)


@pytest.mark.parametrize("test", LENIENT)
def test_a_check_that_lets_a_version_through_does_not_help(test: str) -> None:
    source = f"def f(version, other, fast):\n    if {test}:\n        trtp.aot_impl('a::b')\n"
    assert [found(source, version) for version in VERSIONS] == [["trtp.aot_impl"], [], []]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        (
            "if version >= (11, 0):\n    trtp.aot_impl('a::b')",
            f"`version >= (11, 0)` changes between TensorRT {MIDDLE} and {NEW}, which both have what it keeps",
        ),
        (
            "if version >= (10, 9):\n    trt.BuilderFlag.TF32",
            f"`version >= (10, 9)` changes between TensorRT {OLD} and {MIDDLE}, which both have what it keeps",
        ),
        ("if version >= (10, 2):\n    trt.BuilderFlag.TF32", "`version >= (10, 2)` is True in every version"),
        ("if hasattr(trt, 'Buidler'):\n    pass", "`hasattr(trt, 'Buidler')` is False in every version"),
        ("if version < (11, 0):\n    trt.BuilderFlag.FP16", ""),
        ("if version >= (11, 0):\n    pass\nelse:\n    trt.BuilderFlag.FP16", ""),
        ("if version >= (11, 0):\n    print('new')", ""),
        ("if version >= limit:\n    trt.BuilderFlag.TF32", ""),
    ],
)
def test_a_version_check_must_agree_with_what_the_versions_have(source: str, wrong: str) -> None:
    assert checks(source) == ([f"x.py:1: {wrong}"] if wrong else [])


def test_a_check_of_behaviour_can_be_named_as_one() -> None:
    source = "if version >= (11, 0):\n    trt.BuilderFlag.TF32"
    assert len(checks(source)) == 1
    assert checks(source, ("x.py: version >= (11, 0)",)) == []


def test_what_is_looked_for_must_exist_in_some_version() -> None:
    source = """
        a = getattr(trt, "QuickPluginCreationRequest", None)
        b = getattr(trt, "QuickPluginCreation", None)
        def f(config: trt.IRuntimeConfig, other: "trt.IRuntimeConfiguration"): ...
        """
    scans = [scanned(source, version) for version in VERSIONS]
    assert [missing(each) for each in scans] == [[], [], []]
    assert in_no_version(scans) == [
        "x.py:3: no version of TensorRT has trt.QuickPluginCreation",
        "x.py:4: no version of TensorRT has trt.IRuntimeConfiguration",
    ]
