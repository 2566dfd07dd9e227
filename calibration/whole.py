# SPDX-License-Identifier: Apache-2.0
"""Text files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, text: str) -> None:
    """Write beside the file and put it in its place; an interruption leaves what was there."""
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
