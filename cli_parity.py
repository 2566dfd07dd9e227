# SPDX-License-Identifier: Apache-2.0
"""metaformer-export parity: an exported file against eager PyTorch again, as a whole or module by module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import ConsoleProgress

if TYPE_CHECKING:
    from .artifacts import ParityReport
    from .layerwise import Layers

_SHOWN = 5
_SHOWN_FAILURES = 3


@click.command("parity", short_help="Check an export against PyTorch again; find what departs.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="The weights that were exported.")
@click.option(
    "--file",
    metavar="NAME",
    default="model.onnx",
    show_default=True,
    help="Another graph of the folder, in ONNX Runtime, or model.plan, in TensorRT.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images to compare on. [default: the photographs that come with the package]",
)
@click.option("--layers", is_flag=True, help="Name the first PyTorch module whose results depart from float32.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of --layers, all modules.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def parity_command(
    folder: Path,
    checkpoint: Path | None,
    file: str,
    images: Path | None,
    layers: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Hold a file of the output folder DIR against eager PyTorch, with the
    limits of its export; needs the checkpoint that was exported, if any.

    With --layers the model is traced and lowered again, and what its modules
    hand to each other is compared with the same in float32: a module departs
    where the error grows far more than rounding explains.

    Exit code 1 if parity fails, or a module departs.
    """
    del debug  # main looks for it, whichever command it follows
    progress = ConsoleProgress()
    with progress.stage("start"):
        from .checking import check_again, find_delivered
        from .report import to_json
    delivered = find_delivered(folder, file, progress)
    facts = {"folder": str(folder), "file": file, "model": delivered.spec.name, "precision": delivered.precision}
    if layers:
        from .layerwise import compare_layers

        found = compare_layers(delivered, checkpoint, images, progress)
        if as_json:
            click.echo(to_json(facts | _layer_facts(found)), nl=False)
        else:
            _print_layers(found)
        return 0 if found.passed else 1
    proof = check_again(delivered, checkpoint, images, progress)
    if as_json:
        from dataclasses import asdict

        click.echo(to_json(facts | {"parity": asdict(proof)}), nl=False)
    else:
        _print_proof(delivered.path, proof, classifier=not delivered.spec.features)
    return 0 if proof.passed else 1


def _print_proof(path: Path, proof: ParityReport, *, classifier: bool) -> None:
    from .remarks import parity_line

    click.echo(f"{path}: parity {parity_line(proof, classifier)}")
    for failure in proof.failures[:_SHOWN_FAILURES]:
        click.echo(f"metaformer-export: parity failed: {failure}", err=True)
    if (more := len(proof.failures) - _SHOWN_FAILURES) > 0:
        click.echo(f"metaformer-export: parity failed: {more} more, which --json shows", err=True)


def _print_layers(found: Layers) -> None:
    """The module that departs, and those where the error grows most, in the graph's order."""
    rows = found.largest_increases(_SHOWN)
    width = max(len(each.module) for each in rows) + 2
    click.echo(f"{'module':{width}s}{'error':>10s}{'explained':>12s}{'increase':>10s}")
    for each in rows:
        mark = "  <- departs" if each == found.departed else ""
        error, explained = (f"{100 * share:.2g} %" for share in (each.error, each.explained))
        click.echo(f"{each.module:{width}s}{error:>10s}{explained:>12s}{each.increase:9.1f}x{mark}")
    for line in found.verdict():
        click.echo(line)


def _layer_facts(found: Layers) -> dict[str, object]:
    from dataclasses import asdict

    return {"passed": found.passed, "verdict": list(found.verdict()), **asdict(found)}
