# SPDX-License-Identifier: Apache-2.0
"""Put the tables of the committed figures into the documents, between their markers.

    python benchmarks/document.py           write docs/performance.md and README.md anew
    python benchmarks/document.py --check   only say which differ, and exit 1 if any does

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; NAME is a key of TABLES.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import accuracy
import click
import export_time
import fixed_batch
import passes
import portable
import quantised
import scaling
import summary

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "performance"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "int8.md")
_MADE_BY = {"gpu.json": "python benchmarks/gpu.py --out docs/performance/gpu.json"}
_MARKED = re.compile(r"(<!-- begin (\w+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)

Saved = Mapping[str, Any]


def _passes(saved: Saved) -> str:
    return passes.markdown(passes.Report(**{**saved, "rows": [passes.Row(**row) for row in saved["rows"]]}))


def _export_time(saved: Saved) -> str:
    return export_time.markdown(
        export_time.Report(**{**saved, "rows": [export_time.Row(**row) for row in saved["rows"]]})
    )


def _scaling(saved: Saved) -> str:
    return scaling.markdown(portable.Report(**{**saved, "rows": [portable.Row(**row) for row in saved["rows"]]}))


def _gpu(saved: Saved) -> str:
    import gpu  # kernels and models: not needed for the other tables

    settings = gpu.Settings(**{**saved["settings"], "dtypes": tuple(saved["settings"]["dtypes"])})
    rows = {
        "kernels": [gpu.KernelRow(**row) for row in saved["kernels"]],
        "parity": [gpu.ParityRow(**row) for row in saved["parity"]],
        "models": [gpu.ModelRow(**row) for row in saved["models"]],
    }
    return gpu.tables(gpu.Report(**{**saved, "settings": settings, **rows}))


TABLES: Mapping[str, tuple[str, Callable[[Saved], str]]] = {
    "ratios": ("portable.json", summary.ratio_table),
    "medians": ("portable.json", summary.median_table),
    "acmix_r26": ("acmix_r26.json", summary.markdown),
    "passes": ("passes.json", _passes),
    "passes_anew": ("passes_anew.json", _passes),
    "scaling": ("scaling.json", _scaling),
    "export_time": ("export_time.json", _export_time),
    "accuracy": ("accuracy.json", accuracy.markdown),
    "fixed_batch": ("fixed_batch.json", fixed_batch.markdown),
    "quantised": ("quantised.json", quantised.markdown),
    "quantised_anew": ("quantised_anew.json", quantised.markdown),
    "export_time_onnx": ("export_time_onnx.json", _export_time),
    "gpu": ("gpu.json", _gpu),
}
"""Name of a table: the figures that it shows, and how."""


def filled(document: str) -> str:
    """The document with every marked table made anew."""
    return _MARKED.sub(lambda found: found[1] + _table(found[2]) + found[4], document)


def _table(name: str) -> str:
    file, render = TABLES[name]
    path = FIGURES / file
    if not path.is_file():
        return f"\nNot measured yet: `{_MADE_BY.get(file, 'make bench')}` writes {path.relative_to(ROOT)}.\n\n"
    return f"\n{render(json.loads(path.read_text(encoding='utf-8'))).strip()}\n\n"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a document does not show its figures.")
def main(check: bool) -> None:
    """Put the committed figures into the documents."""
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if (anew := filled(text)) != text:
            stale.append(path.name)
            if not check:
                path.write_text(anew, encoding="utf-8")
    if check and stale:
        raise SystemExit(f"not as the figures in docs/performance say: {', '.join(stale)}; run benchmarks/document.py")


if __name__ == "__main__":
    sys.exit(main())
