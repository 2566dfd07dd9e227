# SPDX-License-Identifier: Apache-2.0
"""The recipes of CONTRIBUTING.md, followed: a family, a pass and a mixer op that the package does not have."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import support
import torch
from torch import Tensor, nn

from metaformer_export.cli import main
from metaformer_export.export.graph import Builder, replace
from metaformer_export.export.lower import lower
from metaformer_export.export.ops import catalog as op_catalog
from metaformer_export.export.ops.mixer_op import DOMAIN, MixerOp
from metaformer_export.export.passes import catalog
from metaformer_export.export.passes.base import Pass
from metaformer_export.models import registry
from metaformer_export.models.family import BuildOptions, Family, SizeRule, Variant
from metaformer_export.models.norms import ChannelLayerNorm


def token_shift(x: Tensor) -> Tensor:
    """A mixer op: every row of the map moves down by one, around the edge."""
    if torch.compiler.is_exporting():
        shifted: Tensor = torch.onnx.ops.symbolic(
            "metaformer::TokenShift", (x,), attrs={"rows": 1}, dtype=x.dtype, shape=x.shape, version=1
        )
        return shifted
    return torch.roll(x, 1, dims=2)


class Shifted(nn.Module):
    """A family of one model around that mixer."""

    def __init__(self, config: int, options: BuildOptions) -> None:
        super().__init__()
        self.stem = nn.Conv2d(options.in_chans, config, 8, 8)
        self.norm = ChannelLayerNorm(config)
        self.mix = nn.Conv2d(config, config, 1)
        self.head = nn.Linear(config, options.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(token_shift(self.norm(x)) * torch.linspace(0, 1, x.shape[2])[:, None])
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


FAMILY = Family(
    name="shifted",
    title="Shifted",
    variants=(
        Variant("shifted_tiny", "shifted_t", 8, parameters=10_632, mixer_ops=("TokenShift",), size_rule=SizeRule(8)),
    ),
    build=Shifted,
)


def shift_function(opset: int) -> ir.Function:
    body = f"""<domain: "{DOMAIN}", opset_import: ["": {opset}]>
        TokenShift <rows> (x) => (y) {{
            zero = Constant <value_ints: ints = [0]> ()
            last = Constant <value_ints: ints = [-1]> ()
            end = Constant <value_ints: ints = [1000000]> ()
            axis = Constant <value_ints: ints = [2]> ()
            above = Slice (x, last, end, axis)
            rest = Slice (x, zero, last, axis)
            y = Concat <axis: int = 2> (above, rest)
        }}"""
    return ir.serde.deserialize_function(onnx.parser.parse_function(body))


def expand(node: ir.Node) -> ir.Value:
    """The operator's portable form."""
    build = Builder(node, mixer_op="TokenShift")
    zero, last, end, axis = (build.constant("bounds", np.array([n])) for n in (0, -1, 10**6, 2))
    above = build.value("Slice", [node.inputs[0], last, end, axis])
    rest = build.value("Slice", [node.inputs[0], zero, last, axis])
    return build.value("Concat", [above, rest], attributes={"axis": 2})


OP = MixerOp("TokenShift", attributes=("rows",), function=shift_function, portable=expand, float32="for the test")


@dataclass(frozen=True)
class GeluToErf(Pass):
    """x / 2 * (1 + erf(x / sqrt 2)), for a runtime without Gelu."""

    def rewrite(self, model: ir.Model) -> int:
        nodes = [node for node in model.graph if node.op_type == "Gelu"]
        for node in nodes:
            build, x = Builder(node), node.inputs[0]
            root, one, half = (build.constant("c", np.array(c, np.float32)) for c in (np.sqrt(0.5), 1.0, 0.5))
            erf = build.value("Erf", [build.value("Mul", [x, root], like=x)], like=x)
            factor = build.value("Mul", [build.value("Add", [erf, one], like=x), half], like=x)
            replace(node.outputs[0], build.value("Mul", [x, factor], like=x))
        return len(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        return "a Gelu is left" if any(node.op_type == "Gelu" for node in graph) else None


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines that the recipes say to add."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, FAMILY))
    monkeypatch.setattr(op_catalog, "OPS", (*op_catalog.OPS, OP))


@pytest.mark.usefixtures("recipe")
def test_a_family_with_a_mixer_op_of_its_own_is_exported_and_proved(capsys) -> None:
    assert main(["--model", "shifted_t", "--fp16", "--resolution", "40x24"]) == 0
    folder = Path("build/shifted_t-40x24-fp16")
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["passed"] is True
    assert 0 < parity["outputs"][0]["rms_rel"] <= 0.01
    assert len(parity["methods"]) == 4
    kept = json.loads((folder / "manifest.json").read_text())["precision"]["kept_in_fp32"]
    assert [each["reason"] for each in kept["model.plugin.onnx"]] == ["TokenShift: for the test"]
    (node,) = [node for node in onnx.load(folder / "model.plugin.onnx").graph.node if node.domain == DOMAIN]
    assert {attribute.name for attribute in node.attribute} == {"rows", "plugin_namespace", "plugin_version"}
    assert main(["--model", "shifted_t", "--resolution", "41"]) == 2
    assert "multiples of 8" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert "shifted_tiny            shifted_t                     0.0 M" in capsys.readouterr().out


def test_a_pass_added_to_the_catalog_runs_in_its_place(traced_small_7x7, monkeypatch: pytest.MonkeyPatch) -> None:
    x = support.image(2, 3, 224, 224)
    before = lower(traced_small_7x7, "portable")
    monkeypatch.setitem(catalog.FORMS, "portable", (GeluToErf(), *catalog.PORTABLE))
    after = lower(traced_small_7x7, "portable")
    assert (after.passes[0].name, after.passes[0].rewrites) == ("GeluToErf", 4)
    kinds = Counter(node.op_type for node in after.model.graph)
    assert (kinds["Gelu"], kinds["Erf"]) == (0, 4)
    assert support.relative_error(support.run_model(after.model, x)[0], support.run_model(before.model, x)[0]) <= 1e-5
