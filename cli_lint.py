# SPDX-License-Identifier: Apache-2.0
"""metaformer-export lint: what a server would refuse in a model repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("lint", short_help="Check a Triton model repository without a server.")
@click.argument("repository", metavar="R", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def lint_command(repository: Path, as_json: bool, debug: bool) -> int:
    """Check the Triton model repository R: configurations against the schema, the
    files, their profiles, types, sizes and labels, and how ensembles hang together.

    Exit code 1 if there is anything that a server would refuse or answer wrongly.
    """
    del debug  # main looks for it, whichever command it follows
    from .runtime.triton.lint import lint

    findings = lint(repository)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        for each in findings:
            click.echo(f"{each.model}: {each.text} [{each.rule}]")
        if not findings:
            click.echo(f"{repository}: nothing that a server would refuse")
    return 1 if findings else 0
