# SPDX-License-Identifier: Apache-2.0
"""metaformer-export calibrate: ranges, what each module's low precision costs, and a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import calibration_options, chosen_calibration
from .console import ConsoleProgress
from .errors import InputError, MissingDependencyError
from .options import ExportOptions, parse_resolution, parse_size

if TYPE_CHECKING:
    from .calibration.plan import PrecisionPlan
    from .planning import Sensitivity

_SHOWN = 10


@click.command("calibrate", short_help="Find ranges, costly modules and a precision plan.")
@click.option("--model", required=True, metavar="NAME", help="Model, for instance hornet_t.")
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="Weights. [default: random]")
@click.option("--num-classes", type=int, metavar="N", help="Classes of the head. [default: the checkpoint's]")
@click.option("--features", is_flag=True, help="Stage maps instead of logits.")
@click.option("--set", "sizes", multiple=True, metavar="NAME=N,N,...", help="Other widths or depths, as in an export.")
@click.option("--resolution", metavar="N|HxW", help="Input size in pixels. [default: the model's]")
@calibration_options
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the images drawn.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16"]),
    default="int8",
    show_default=True,
    help="What modules are spared: INT8, or FP16, which needs no calibration.",
)
@click.option(
    "--target",
    type=click.Choice(["auto", "onnx", "openvino", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Target of the exports that ranges are for: onnx and openvino quantise graphs of their own, the others one.",
)
@click.option("--sensitivity", is_flag=True, help="Rank the modules by the error that each alone causes.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Find the fewest modules to keep in high precision so that no more than that many points of top-1 are lost; "
    "without labels, percent of images with another first class; with --features, rms error in % of the spread.",
)
@click.option(
    "--held-out", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Images to judge by."
)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: build/NAME-calibration]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def calibrate_command(**given: Any) -> int:
    """Compute ranges for INT8, find out which modules low precision costs most,
    and the fewest that have to be spared it.

    \b
    Leaves in the output folder:
      calibration.json     ranges, for --int8 --calibration FILE
      sensitivity.json     what each module costs, and the error-latency curve
      sensitivity.svg      both as a plot
      precision-plan.toml  modules to keep, for --precision-plan FILE

    \b
    Example:
      metaformer-export calibrate --model hornet_t --checkpoint h.pth \\
        --calib-data val/ --max-drop 0.5
    """
    if given["calib_data"] is None:
        raise InputError("calibrate needs images like those that the model will see: --calib-data DIR.")
    options = _options(given)
    folder = given["output"] or Path("build") / f"{given['model']}-calibration"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; give a folder.")
    progress = ConsoleProgress()
    with progress.stage("start"):
        from .planning import PLAN, PLOT, Request, run_calibration
    wanted = Request(given["sensitivity"], given["max_drop"], given["held_out"])
    found, plan = run_calibration(options, wanted, folder, progress)
    if found is not None:
        _plot(found, folder / PLOT, progress)
    if given["as_json"]:
        click.echo(json.dumps(_facts(folder, found, plan), indent=2))
        return 0
    if found is not None:
        _print(found)
    if plan is not None:
        click.echo(f"{folder / PLAN}: {len(plan.keep)} modules kept, for {plan.limit}")
    else:
        click.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _options(given: dict[str, Any]) -> ExportOptions:
    return ExportOptions(
        model=given["model"],
        checkpoint=given["checkpoint"],
        precision=given["precision"],
        target=given["target"],
        resolution=None if given["resolution"] is None else parse_resolution(given["resolution"]),
        num_classes=given["num_classes"],
        features=given["features"],
        sizes=dict(parse_size(text) for text in given["sizes"]),
        seed=given["seed"],
        calibration=chosen_calibration(given),
    )


def _plot(found: Sensitivity, path: Path, progress: ConsoleProgress) -> None:
    from .plotting import draw

    try:
        draw(found, path)
    except MissingDependencyError as error:
        progress.note(f"No plot: {error}")


def _print(found: Sensitivity) -> None:
    click.echo(f"{'module':44s}{'alone':>9s}")
    for module, cost in found.modules[:_SHOWN]:
        click.echo(f"{module:44s}{100 * cost.rms_rel:7.2g} %")
    if len(found.modules) > _SHOWN:
        click.echo(f"and {len(found.modules) - _SHOWN} more")
    unit = "points of top-1 lost" if found.labelled else "% with another first class"
    for point in found.curve:
        ms = "" if point.median_ms is None else f", {point.median_ms:.1f} ms"
        chosen = "  <- chosen" if point.chosen else ""
        click.echo(f"{point.kept:4d} kept: rms {100 * point.rms_rel:.2g} %, {point.drop:.2g} {unit}{ms}{chosen}")
    if found.float_ms is not None:
        click.echo(f"float32: {found.float_ms:.1f} ms")


def _facts(folder: Path, found: Sensitivity | None, plan: PrecisionPlan | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "folder": str(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "sensitivity": None if found is None else asdict(found),
        "plan": None if plan is None else asdict(plan),
    }
