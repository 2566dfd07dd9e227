# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from .options import METHODS, CalibrationOptions

_DEFAULTS = CalibrationOptions()
_CALIBRATION = (
    click.option(
        "--calib-data",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Images like those the model will see: in any depth, in a folder for each class, or .npy/.npz of "
        "preprocessed float32.",
    ),
    click.option(
        "--calib-size", type=int, default=_DEFAULTS.size, show_default=True, metavar="N", help="Draw N, by the seed."
    ),
    click.option(
        "--calib-method",
        type=click.Choice(METHODS),
        default=_DEFAULTS.method,
        show_default=True,
        help="Ranges: all values, least information lost, all but the outermost 0.01 %, or least squared error.",
    ),
    click.option(
        "--batch-size", type=int, default=_DEFAULTS.batch_size, show_default=True, metavar="N", help="Images at once."
    ),
    click.option(
        "--no-equalize",
        is_flag=True,
        help="Leave channels as they are; by default they are scaled by powers of two where that lowers the error.",
    ),
)


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where ranges come from."""
    return reduce(lambda decorated, option: option(decorated), reversed(_CALIBRATION), command)


def chosen_calibration(given: dict[str, Any]) -> CalibrationOptions:
    """What those options, and `--calibration` where a command has it, say."""
    return CalibrationOptions(
        data=given["calib_data"],
        size=given["calib_size"],
        method=given["calib_method"],
        batch_size=given["batch_size"],
        ranges=given.get("calibration"),
        equalize=not given["no_equalize"],
    )
