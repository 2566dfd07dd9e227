# SPDX-License-Identifier: Apache-2.0
"""metaformer-export inspect: what a checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .models.checkpoints import Checkpoint
    from .models.identify import Identity


@click.command("inspect", short_help="Say what a checkpoint is.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def inspect_command(file: Path, as_json: bool, debug: bool) -> int:
    """Say which model the checkpoint FILE is of, and whose names it uses."""
    del debug  # main looks for it, whichever command it follows
    from .models.checkpoints import read_checkpoint
    from .models.identify import identify

    read = read_checkpoint(file)
    found = identify(read)
    facts = _facts(read, found)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return 0
    for title, text in _lines(facts):
        click.echo(f"{title:12s}{text}")
    if found.note:
        click.echo(f"note: {found.note}", err=True)
    return 0


def _facts(read: Checkpoint, found: Identity) -> dict[str, Any]:
    return {
        "file": str(read.path),
        "sha256": read.sha256,
        "family": found.family.name,
        "model": found.variant.name,
        "short_name": found.variant.short_name,
        "same_tensors": [variant.name for variant in found.others],
        "kind": found.kind,
        "num_classes": found.num_classes,
        "in_chans": found.in_chans,
        "source": found.source,
        "wrapper": read.wrapper,
        "stored_as": list(read.stored_as),
        "tensors": len(read.tensors),
        "parameters": found.parameters,
    }


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """For people: what is known, a title and a text each."""
    classes = "" if facts["num_classes"] is None else f", {facts['num_classes']} classes"
    under = f"; under {facts['wrapper']!r} in the file" if facts["wrapper"] else ""
    same = [("same as", ", ".join(facts["same_tensors"]))] if facts["same_tensors"] else []
    return [
        ("model", f"{facts['model']} ({facts['short_name']}), family {facts['family']}"),
        *same,
        ("kind", f"{facts['kind']}{classes}, {facts['in_chans']} input channels"),
        ("names", f"{facts['source']}{under}"),
        ("stored as", ", ".join(facts["stored_as"])),
        ("tensors", f"{facts['tensors']}, {facts['parameters']:,} parameters"),
        ("sha256", facts["sha256"]),
    ]
