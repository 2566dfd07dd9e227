# SPDX-License-Identifier: Apache-2.0
"""Figures of an earlier run, to which those of further models are added (--add)."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


def rows_of_others(out: Path, report: Any, models: Collection[str]) -> list[dict[str, Any]]:
    """Rows that the report at `out` has of other models.

    Raises:
        click.UsageError: it is of another day or setup than `report`, so that its figures say nothing beside new ones.
    """
    saved = json.loads(out.read_text(encoding="utf-8"))
    for key, value in asdict(report).items():
        if key != "rows" and saved[key] != value:
            raise click.UsageError(f"{out} is of other {key} ({saved[key]}); time all models again.")
    return [row for row in saved["rows"] if row["model"] not in models]
