# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml lists by hand is what there is."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_PACKAGED = {"tests", "benchmarks", "docs", "build", "dist"}


def sources() -> list[Path]:
    files = [
        path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in files if path.relative_to(ROOT).parts[0] not in NOT_PACKAGED]


def test_every_package_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    names = {".".join(("metaformer_export", *folder.parts)) for folder in folders}
    assert names == set(PROJECT["tool"]["setuptools"]["packages"])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_own_code_is_imported_relatively_and_downward_only() -> None:
    forbidden = {
        "models": {"export", "runtime", "cli", "pipeline"},
        "export": {"runtime", "cli", "pipeline"},
        "runtime": {"cli", "pipeline"},
    }
    checked = 0
    for path in sources():
        folder = path.relative_to(ROOT).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("metaformer_export") for alias in node.names), path
            if isinstance(node, ast.ImportFrom):
                checked += 1
                assert not (node.module or "").startswith("metaformer_export"), path
                depth = len(path.relative_to(ROOT).parts)
                if node.level == depth and folder in forbidden:
                    assert (node.module or "").split(".")[0] not in forbidden[folder], path
    assert checked > 100


def test_every_requirement_is_pinned_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)]
    names = {requirement.split(">=")[0].split("[")[0].lower() for requirement in wanted}
    assert names <= pinned
    assert "torch==2.13.0" in lines


def test_every_runtime_dependency_is_imported() -> None:
    imported = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    by_name = {"pillow": "PIL", "pyyaml": "yaml", "onnxscript": None}  # torch.onnx imports onnxscript
    for requirement in PROJECT["project"]["dependencies"]:
        name = requirement.split(">=")[0].split("[")[0]
        module = by_name.get(name, name.replace("-", "_"))
        assert module is None or module in imported, name
