# SPDX-License-Identifier: Apache-2.0
"""The names at the top of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import metaformer_export
from metaformer_export.errors import InputError
from metaformer_export.models import registry


@pytest.mark.parametrize("first", ["", "import metaformer_export.export.trace, metaformer_export.runtime.parity; "])
def test_every_public_name_is_what_it_says_in_any_order_of_imports(first: str) -> None:
    names = [name for name in metaformer_export.__all__ if name != "__version__"]
    assert len(names) == 5
    code = (
        f"{first}from metaformer_export import {', '.join(names)}; print(*[callable(n) for n in ({', '.join(names)})])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["True"] * 5


def test_other_names_are_missing_as_usual() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = metaformer_export.nothing  # type: ignore[attr-defined]


def test_every_name_means_one_variant() -> None:
    """A short name may be the full one; it is no other variant's."""
    names = [{variant.name, variant.short_name} for _, variant in registry.variants()]
    assert len(set().union(*names)) == sum(map(len, names))
    assert len(names) >= 66


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("precision", "fp61", "fp32, fp16, bf16 or int8"),
        ("target", "gpu", "auto, onnx, openvino or tensorrt"),
        ("io", "bf16", "fp32 or fp16"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(name: str, value: str, known: str) -> None:
    with pytest.raises(InputError, match=f"{name} '{value}' is not known; use {known}[.]"):
        metaformer_export.ExportOptions(**{"model": "hornet_t", name: value})
