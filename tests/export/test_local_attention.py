# SPDX-License-Identifier: Apache-2.0
"""metaformer::LocalAttention: every form computes what the float64 reference computes."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaformer_export.export.ops.local_attention import OP
from metaformer_export.export.ops.local_attention.op import reference
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass
from metaformer_export.export.passes.expand_mixer_ops import ExpandMixerOps
from metaformer_export.models.mixers.local_attention import local_attention

FORMS = pytest.mark.parametrize("form", [ExpandMixerOps(), AttachPlugin()], ids=["portable", "function"])
SCALE = 0.7


def case(height: int, width: int, heads: int = 2, dim: int = 4, batch: int = 2) -> list[np.ndarray]:
    random = np.random.RandomState(height * 100 + width)
    return list(random.standard_normal((3, batch, heads * dim, height, width)).astype(np.float32))


def error(form: Pass, inputs: list[np.ndarray], heads: int, window: int, stride: int) -> float:
    want = reference(*inputs, heads, window, stride, SCALE)
    attributes = {"heads": heads, "window": window, "stride": stride, "scale": SCALE}
    return float(np.abs(support.run_form(form, OP, inputs, attributes, want.astype(np.float32)) - want).max())


@FORMS
@given(height=st.integers(4, 20), width=st.integers(4, 20), stride=st.integers(1, 3), heads=st.integers(1, 3))
def test_every_form_matches_the_reference(form: Pass, height: int, width: int, stride: int, heads: int) -> None:
    assert error(form, case(height, width, heads), heads, 7, stride) <= 1e-5


@FORMS
@given(window=st.sampled_from([1, 3, 5]), height=st.integers(3, 30), stride=st.integers(1, 2), batch=st.integers(1, 3))
def test_any_window(form: Pass, window: int, height: int, stride: int, batch: int) -> None:
    assert error(form, case(height, 9, batch=batch), 2, window, stride) <= 1e-5


@FORMS
@pytest.mark.parametrize(("height", "width", "stride"), [(56, 56, 1), (56, 56, 2), (28, 28, 1), (7, 7, 1), (33, 17, 2)])
def test_the_sizes_of_the_stages(form: Pass, height: int, width: int, stride: int) -> None:
    assert error(form, case(height, width, batch=1), 2, 7, stride) <= 1e-5


@given(height=st.integers(4, 16), width=st.integers(4, 16), stride=st.integers(1, 3))
def test_eager_matches_the_reference(height: int, width: int, stride: int) -> None:
    inputs = case(height, width)
    got = local_attention(*(torch.from_numpy(x).double() for x in inputs), 2, 7, stride, SCALE).numpy()
    assert np.abs(got - reference(*inputs, 2, 7, stride, SCALE)).max() <= 1e-12
