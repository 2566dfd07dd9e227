# SPDX-License-Identifier: Apache-2.0
"""What the documents say is so."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import support
import torch

from metaformer_export import create_model
from metaformer_export.models import registry
from metaformer_export.runtime.clustering_parity import LEAST
from metaformer_export.runtime.parity import THRESHOLDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_model_is_documented_as_it_is() -> None:
    models = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"\n{len(registry.variants())} variants;" in README
    for family, variant in registry.variants():
        row = f"| {variant.name} | {variant.short_name} | {variant.parameters / 1e6:.1f} M | {variant.image_size} |"
        assert f"{row} {variant.size_rule.describe()} | {', '.join(variant.mixer_ops) or '-'} |" in models
        assert f"\n| {family.title}" in README
        assert f"## {family.title}\n" in models


def test_the_readme_names_every_neck() -> None:
    for family in registry.FAMILIES:
        assert all(f"--neck {neck.name}" in README for neck in family.necks)


def test_the_documented_thresholds_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for precision, limits in THRESHOLDS.items():
        (row,) = re.findall(rf"^\| {precision} \| (.*) \|$", text, re.MULTILINE)
        max_rel, rms_rel, cosine, top1 = row.split(" | ")
        written = (float(max_rel), float(rms_rel), float(cosine), float(top1.removesuffix(" %")) / 100)
        assert written == dataclasses.astuple(limits)


def test_the_documented_limits_of_clusterings_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    for precision, least in LEAST.items():
        assert f"| {precision} | {100 * least.alone:g} % | {100 * least.lent:g} % |" in text


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), (document.name, target)


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path) -> None:
    classifier, detector = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.save(create_model("hornet_t_gf").state_dict(), tmp_path / "hornet_tiny_gf.pth")
    torch.save(torch.from_numpy(support.image(2, 3, 224, 224)), tmp_path / "images.pt")
    setup = "import torch; images = torch.load('images.pt').numpy()\n"
    check = """
reference = model(torch.from_numpy(images)).numpy()
print(abs(logits - reference).max() / reference.std())
"""
    check_maps = """
print([each.shape[2] for each in backbone(torch.from_numpy(images))])
print([tuple(each.shape[1:3]) for each in pyramid(torch.from_numpy(images))])
"""
    said = subprocess.check_output(
        [sys.executable, "-c", setup + classifier + check + detector + check_maps], cwd=tmp_path, text=True
    )
    difference, sides, levels = said.splitlines()[-3:]
    assert float(difference) <= 0.05
    assert sides == str([56, 28, 14, 7])
    assert levels == str([(256, side) for side in (56, 28, 14, 7, 4)])
