# SPDX-License-Identifier: Apache-2.0
"""metaformer-export inspect: what a checkpoint is, or an output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .models.checkpoints import Checkpoint
    from .models.identify import Identity

_NAMES = {"fp32": "float32"}
"""How a type is written in a sentence, where it is not by its short name."""


@click.command("inspect", short_help="Say what a checkpoint or an output folder is.")
@click.argument("file", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def inspect_command(file: Path, as_json: bool, debug: bool) -> int:
    """Say which model the checkpoint FILE is of, and whose names it uses; or
    what the output folder DIR holds, and what is true of it.
    """
    del debug  # main looks for it, whichever command it follows
    if file.is_dir():
        return _folder(file, as_json)
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


def _folder(folder: Path, as_json: bool) -> int:
    """Print what the manifest of an output folder says."""
    from .delivered import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
        return 0
    model, precision, choice = manifest["model"], manifest["precision"], manifest["choice"]
    height, width = model["image_size"]
    lines = [
        ("model", f"{model['name']} ({model['short_name']}), {height}x{width}, {model['weights']}"),
        ("precision", f"{precision['requested']}, inputs and outputs {precision['io']}"),
        ("status", f"{manifest['status']}, made {manifest['created']} on {manifest['machine']}"),
        *((("file", f"{name}, {size / 1e6:.1f} MB") for name, size in _files(manifest["outputs"]).items())),
        *((("choice", f"{choice['file']} in {choice['runtime']}, {choice['median_ms']:.1f} ms"),) if choice else ()),
        *(_engine_lines(manifest["tensorrt"]) if manifest["tensorrt"] else ()),
    ]
    for title, text in lines:
        click.echo(f"{title:12s}{text}")
    return 0


def _files(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of each file of a folder, those of a folder inside it together."""
    found: dict[str, int] = {}
    for name, entry in outputs.items():
        top, slash, _ = name.partition("/")
        found[top + slash] = found.get(top + slash, 0) + entry["bytes"]
    return found


def _engine_lines(engine: dict[str, Any]) -> list[tuple[str, str]]:
    """What the engine is, group by group, against what was asked for."""
    report, batch = engine["report"], ":".join(map(str, engine["batch"]))
    lines = [("engine", f"TensorRT {engine['version']} for {engine['gpu']}, from {engine['source']}, batch {batch}")]
    for group, wanted in report["wanted"].items():
        lines.append(("", f"{group}: asked for {_counted(wanted)}; computes {_counted(report['got'].get(group, {}))}"))
    plugins = _counted(report["plugins"])
    lines.append(("layers", f"{report['layers']}, {report['reformats']} reformats, plugins {plugins}"))
    if unread := report.get("unread"):
        lines.append(("unread", unread))
    casts = f"{report['casts']} of the file's own, {report.get('unexpected_casts', 0)} unexpected"
    lines.append(("casts", f"{casts} (layers that only change a type)"))
    if unknown := report.get("unknown", 0):
        lines.append(("unknown", f"TensorRT does not say in which type {unknown} nodes compute"))
    for each in report["fallen_back"]:
        got = _NAMES.get(each.get("got", "fp32"), each.get("got"))
        lines.append(("fell back", f"{', '.join(each['modules'])}: {got} instead of {each['wanted']}"))
    return lines


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
