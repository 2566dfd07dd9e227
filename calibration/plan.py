# SPDX-License-Identifier: Apache-2.0
"""The precision plan: which modules stay in high precision, and why, as a small file to review and commit."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import Precision
from ..errors import CalibrationError
from .whole import write_whole

FORMAT = 1
_PLANNED: tuple[Precision, ...] = ("int8", "fp16")


@dataclass(frozen=True)
class PrecisionPlan:
    """What `calibrate --max-drop` found.

    Attributes:
        precision: of all that is not kept.
        limit: what the plan was made to stay within, in words.
        keep: modules that stay in high precision, by PyTorch name, with the reason.
    """

    model: str
    precision: Precision
    limit: str
    keep: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As TOML, whole or not at all."""
        lines = [
            "# Modules that stay in high precision: review it, commit it, give it to exports as --precision-plan.",
            f"format = {FORMAT}",
            f"model = {json.dumps(self.model)}",
            f"precision = {json.dumps(self.precision)}",
            f"limit = {json.dumps(self.limit)}",
        ]
        for module, reason in self.keep.items():
            lines += ["", "[[keep]]", f"module = {json.dumps(module)}", f"reason = {json.dumps(reason)}"]
        write_whole(path, "\n".join(lines) + "\n")


def read_plan(path: Path) -> PrecisionPlan:
    """What `PrecisionPlan.write` wrote, or somebody else in its form.

    Raises:
        CalibrationError: no such file, or it is no plan that this version reads.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise CalibrationError(f"{path} is of format {content['format']}, this version reads {FORMAT}.")
        keep = {
            str(each["module"]): str(each.get("reason", f"{path.name} says so")) for each in content.get("keep", [])
        }
        plan = PrecisionPlan(str(content["model"]), content["precision"], str(content.get("limit", "")), keep)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path} is no precision plan, or it is damaged ({error}).") from error
    if plan.precision not in _PLANNED:
        raise CalibrationError(f"{path} plans {plan.precision!r}, which is not one of {', '.join(_PLANNED)}.")
    return plan


def check_plan(plan: PrecisionPlan, path: Path, model: str, precision: Precision, modules: Collection[str]) -> None:
    """CalibrationError unless a plan is for this model and precision, and names modules that it has."""
    if (plan.model, plan.precision) != (model, precision):
        raise CalibrationError(
            f"{path} is a plan for {plan.model} in {plan.precision}, not for {model} in {precision}; "
            "make one with metaformer-export calibrate --max-drop."
        )
    wrong = next((module for module in plan.keep if module not in modules), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, modules, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise CalibrationError(f"{path} keeps {wrong}, which {model} has no layers of{hint}")
