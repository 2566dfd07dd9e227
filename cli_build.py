# SPDX-License-Identifier: Apache-2.0
"""metaformer-export build: an engine for a folder that was exported without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_engine import chosen_engine, engine_options
from .console import ConsoleProgress
from .options import ENGINE_BATCH, BatchRange, ExportOptions


@click.command("build", short_help="Build a TensorRT engine in an output folder.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--batch", metavar="N|MIN:OPT:MAX", help="Batch sizes the engine is for. [default: 1:8:32]")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print what the manifest says of the engine.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def build_command(folder: Path, batch: str | None, as_json: bool, debug: bool, **given: Any) -> int:
    """Build model.plan in the output folder DIR, from its .onnx files, with the
    TensorRT and for the GPU of this machine.

    For folders that were exported on a machine without a GPU, and for another
    GPU or TensorRT. Exit code 1 if TensorRT builds none, which leaves the
    folder as it is, or one that computes most of what the file has in a lower
    precision in float32, or nothing in int8: the folder is marked failed then.
    """
    del debug  # main looks for it, whichever command it follows
    options = ExportOptions(
        target="tensorrt",
        batch=ENGINE_BATCH if batch is None else BatchRange.parse(batch),
        engine=chosen_engine(given),
        plugins=given["plugins"],
    )
    from .rebuilding import rebuild_engine
    from .report import to_json

    engine = rebuild_engine(folder, options, ConsoleProgress())
    if as_json:
        click.echo(to_json(engine.told()), nl=False)
    else:
        click.echo(
            f"{engine.path}: built by TensorRT {engine.version} for {engine.gpu}; "
            f"metaformer-export parity {folder} --file {engine.path.name} holds it against eager PyTorch"
        )
    for failure in engine.failures:
        click.echo(f"metaformer-export: {failure}", err=True)
    return 1 if engine.failures else 0
