# SPDX-License-Identifier: Apache-2.0
"""Options of the export that are about TensorRT engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from .artifacts import LoweringForm
from .runtime.tensorrt.options import HARDWARE, MAX_OPTIMIZATION_LEVEL, TILINGS, EngineOptions

_DEFAULTS = EngineOptions()
_OPTIONS = (
    click.option("--workspace", "workspace_mib", type=int, metavar="MIB", help="Memory for tactics. [default: all]"),
    click.option(
        "--optimization-level",
        type=int,
        default=_DEFAULTS.optimization_level,
        show_default=True,
        metavar="N",
        help=f"0 builds fastest, {MAX_OPTIMIZATION_LEVEL} searches longest.",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Measured tactics, kept for the next build. [default: one for each GPU and version, in the user's cache]",
    ),
    click.option("--max-tactics", type=int, metavar="N", help="Tactics timed for a layer. [default: TensorRT's]"),
    click.option(
        "--tiling",
        type=click.Choice(TILINGS),
        default=_DEFAULTS.tiling,
        show_default=True,
        help="How long to search for tilings that keep values in the L2 cache.",
    ),
    click.option("--version-compatible", is_flag=True, help="The engine loads in later versions of TensorRT, too."),
    click.option(
        "--hardware-compatible",
        type=click.Choice(HARDWARE),
        default=_DEFAULTS.hardware_compatible,
        show_default=True,
        help="The engine runs on other GPUs, too.",
    ),
    click.option("--strip-plan", is_flag=True, help="Leave weights out of the engine; they come from the .onnx file."),
    click.option("--refit", is_flag=True, help="Weights may be replaced in the built engine."),
    click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory."),
    click.option("--tf32/--no-tf32", default=_DEFAULTS.tf32, show_default=True, help="TF32 in float32 layers."),
    click.option("--cuda-graph", is_flag=True, help="Record a run at each batch size and replay it."),
    click.option("--plugins/--no-plugins", default=True, show_default=True, help="Whether mixer ops may be plugins."),
)
lowering_option = click.option(
    "--lowering",
    multiple=True,
    metavar="OP=FORM",
    help="How a mixer op reaches TensorRT: portable, plugin or native (GlobalFilter: DFT); may be repeated. "
    "[default: plugins where they can be and, on a GPU, are faster]",
)
NAMES = (
    "workspace_mib",
    "optimization_level",
    "timing_cache",
    "max_tactics",
    "tiling",
    "version_compatible",
    "hardware_compatible",
    "strip_plan",
    "refit",
    "weight_streaming",
    "tf32",
    "cuda_graph",
    "lowering",
    "plugins",
)
"""In the order of the help."""
_OWN = ("lowering", "plugins")
"""Those that are not the builder's."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of engines on a command."""
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)


def chosen_engine(given: dict[str, Any]) -> EngineOptions:
    """How the engine is to be built."""
    return EngineOptions(**{name: given[name] for name in NAMES if name not in _OWN})


def chosen_lowering(given: dict[str, Any]) -> dict[str, LoweringForm]:
    """Forms of mixer ops, by op; InputError for what there is not."""
    if not given["lowering"]:
        return {}
    from .export.ops.choosing import parse_lowering

    return dict(parse_lowering(text) for text in given["lowering"])
