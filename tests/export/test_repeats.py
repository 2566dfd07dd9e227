# SPDX-License-Identifier: Apache-2.0
"""Repeated blocks are traced once, and the graph is the one that tracing all of them gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import support
import torch
from small_models import KINDS, MOST_QUICKLY, small
from torch import Tensor, nn

from metaformer_export.export import repeats
from metaformer_export.export.graph import module_of
from metaformer_export.export.trace import trace
from metaformer_export.models import hornet
from metaformer_export.models.family import BuildOptions
from metaformer_export.runtime import eager

_DEEPER: dict[str, object] = {
    "boat_swin": replace(KINDS["boat_swin"][1], depths=(1, 1, 4, 1)),  # type: ignore[type-var]
    "boat_cswin": replace(KINDS["boat_cswin"][1], depths=(1, 1, 4, 1)),  # type: ignore[type-var]
    "acmix_swin": replace(KINDS["acmix_swin"][1], depths=(1, 1, 4, 1)),  # type: ignore[type-var]
    "acmix_resnet": (1, 3, 1, 1),
    "hornet": replace(support.SMALL, depths=(1, 1, 2, 1)),
    "hornet_gf": replace(support.SMALL_GF, depths=(1, 1, 2, 1)),
}
"""So that some blocks are alike: in the first three they take turns."""


@pytest.mark.parametrize("kind", MOST_QUICKLY)
def test_copies_make_the_graph_that_tracing_all_blocks_makes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(kind)
    module, copied, spec = model.module, model.traced, model.traced.spec
    if kind in _DEEPER:
        module = support.fill_golden(KINDS[kind][0].build(_DEEPER[kind], BuildOptions(num_classes=10)))
        copied = trace(module, spec)
    assert len(repeats._kinds(module)) >= 1, "else this compares a trace with itself"
    monkeypatch.setattr(repeats, "_kinds", lambda model: [])
    assert support.canonical(copied.model.graph) == support.canonical(trace(module, spec).model.graph)


def test_of_a_deep_stage_one_block_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    depths = (1, 2, 6, 1)
    module = support.fill_golden(hornet.HorNet(replace(support.SMALL, depths=depths), BuildOptions(num_classes=10)))
    forward, calls = hornet.Block.forward, Counter[nn.Module]()

    def counted(block: hornet.Block, x: Tensor) -> Tensor:
        calls[block] += 1
        return forward(block, x)

    monkeypatch.setattr(hornet.Block, "forward", counted)
    graph = trace(module, support.spec_for("deep", (64, 96))).model.graph
    assert len(calls) == len(depths)
    assert "forward" not in module.stages[2][3].__dict__
    assert {f"stages.2.{i}.gnconv.proj_out" for i in range(6)} <= {module_of(node) for node in graph}
    assert not any(node.domain.startswith("metaformer") for node in graph)


class _Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.offsets = torch.tensor([scale, 1.0])  # no buffer, as the indices of a table of positions
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.conv(x) + self.offsets.sum()
        return out


class _Pair(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x) + y, x - y


class _Net(nn.Module):
    """Blocks that are alike, that differ in an attribute, that lie in others that are alike, that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.alike = nn.Sequential(*(_Scaled(0.5) for _ in range(3)))
        self.different = nn.Sequential(_Scaled(0.5), _Scaled(2.0))
        self.pairs = nn.ModuleList([_Pair(), _Pair()])
        self.nested = nn.Sequential(*(nn.Sequential(_Scaled(0.7), _Scaled(0.7)) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.different(self.alike(x))
        y = x
        for pair in self.pairs:
            x, y = pair(x, y)
        out: Tensor = self.nested(x + y)
        return out


def test_blocks_of_every_sort_compute_what_eager_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = _Scaled.forward, Counter[nn.Module]()

    def counted(block: _Scaled, x: Tensor) -> Tensor:
        calls[block] += 1
        return forward(block, x)

    module = support.fill_golden(_Net())
    x = support.image(3, 3, 16, 24)
    want = eager.run(module, x)[0]
    monkeypatch.setattr(_Scaled, "forward", counted)
    graph = trace(module, support.spec_for("net", (16, 24))).model
    assert len(calls) == 1 + 2 + 1  # alike, different, nested in alike
    assert sum(node.op_type == "Conv" for node in graph.graph) == 3 + 2 + 2 + 4
    assert support.relative_error(support.run_model(graph, x)[0], want) <= 1e-5


def test_blocks_that_share_a_weight_are_all_traced() -> None:
    first, second = _Scaled(0.5), _Scaled(0.5)
    second.conv.weight = first.conv.weight
    module = support.fill_golden(nn.Sequential(first, second))
    graph = trace(module, support.spec_for("shared", (16, 24))).model
    x = support.image(3, 3, 16, 24)
    assert support.relative_error(support.run_model(graph, x)[0], eager.run(module, x)[0]) <= 1e-5
