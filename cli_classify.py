# SPDX-License-Identifier: Apache-2.0
"""metaformer-export classify: what images show, asked of a Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import ConsoleProgress

if TYPE_CHECKING:
    from .runtime.triton.answers import Classification


@click.command("classify", short_help="Ask a server what images show.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--url",
    required=True,
    metavar="HOST:PORT",
    help="The server; http://, https://, grpc:// or grpcs:// may precede it.",
)
@click.option("--model", required=True, metavar="M", help="Name of the model there, or of its ensemble.")
@click.option(
    "--protocol",
    type=click.Choice(["auto", "grpc", "http"]),
    default="auto",
    show_default=True,
    help="auto: by the URL; HTTP at port 8000, else gRPC.",
)
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Classes for each image."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that a request may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def classify_command(
    images: tuple[Path, ...],
    url: str,
    model: str,
    protocol: Any,
    top: int,
    timeout: float,
    as_json: bool,
    debug: bool,
) -> int:
    """Send encoded images to a model that a Triton Inference Server serves, and
    print the best classes of each.

    Exit code 1 if the server does not answer, or an image fails; the others
    are classified all the same.

    \b
    Example:
      metaformer-export classify --url localhost:8001 --model hornet_t cat.jpg
    """
    del debug  # main looks for it, whichever command it follows
    from .runtime.triton.client import Client

    with (
        Client(url, protocol=protocol, timeout=timeout) as client,
        ConsoleProgress().count("classify", len(images)) as told,
    ):
        found = client.classify(images, model, top=top, told=told)
    if as_json:
        rows = [{"image": str(path), **asdict(each)} for path, each in zip(images, found, strict=True)]
        click.echo(json.dumps({"url": url, "model": model, "images": rows}, indent=2))
    elif any(each.classes for each in found):
        _print_table(images, found)
    for path, each in zip(images, found, strict=True):
        if each.error:
            click.echo(f"metaformer-export: {path}: {each.error}", err=True)
    return 1 if any(each.error for each in found) else 0


def _print_table(images: Sequence[Path], found: Sequence[Classification]) -> None:
    """A row for each class; the image is named in its first."""
    width = max(len("image"), *(len(str(path)) for path in images)) + 2
    click.echo(f"{'image':{width}s}{'score':>7s}   {'id':>5s}  class")
    for path, each in zip(images, found, strict=True):
        name = str(path)
        for best in each.classes:
            click.echo(f"{name:{width}s}{100 * best.score:5.1f} %   {best.class_id:5d}  {best.label}")
            name = ""
