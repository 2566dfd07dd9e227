# SPDX-License-Identifier: Apache-2.0
"""sensitivity.svg: what each module costs, and error against latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MissingDependencyError

if TYPE_CHECKING:
    from .planning import Sensitivity

_SHOWN = 25
"""Modules, the dearest."""


def draw(found: Sensitivity, path: Path) -> None:
    """Write the plot; MissingDependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            'matplotlib is not installed; pip install "metaformer-export[plot]" brings it.'
        ) from error
    shown = found.modules[:_SHOWN]
    timed = [point for point in found.curve if point.median_ms is not None]
    figure = Figure(figsize=(12 if timed else 8, 2 + 0.22 * len(shown)), layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    chosen = max((point.kept for point in found.curve if point.chosen), default=0)
    colours = ["C1" if i < chosen else "C0" for i in range(len(shown))]
    panels[0].barh([module for module, _ in shown], [100 * cost.rms_rel for _, cost in shown], color=colours)
    panels[0].invert_yaxis()
    panels[0].set(title=f"{found.precision} in one module alone", xlabel="rms error, % of the spread")
    if timed:
        panel = panels[1]
        panel.plot([point.median_ms for point in timed], [100 * point.rms_rel for point in timed], "o-", color="C0")
        for point in timed:
            text = f"{point.kept} kept{', chosen' if point.chosen else ''}"
            where = (point.median_ms, 100 * point.rms_rel)
            panel.annotate(text, where, textcoords="offset points", xytext=(5, 4), fontsize="small")
            if point.chosen:
                panel.plot(*where, "o", color="C1", markersize=9)
        panel.axvline(found.float_ms, color="grey", linestyle="--", label="float32")
        panel.set(title="modules kept in high precision", xlabel="ms at batch 1", ylabel="rms error, % of the spread")
        panel.legend()
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.suptitle(f"{found.model}, {found.images} images")
    figure.savefig(path, metadata={"Date": None})
