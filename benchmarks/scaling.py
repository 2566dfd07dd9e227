# SPDX-License-Identifier: Apache-2.0
"""How cost grows with the batch and with the resolution: figures, tables and a plot.

    python benchmarks/scaling.py --out docs/scaling.json
    python benchmarks/scaling.py hornet_t --batch 1 --batch 8 --resolution 224 --resolution 384

Batches are timed at the model's own resolution, resolutions at batch 1, as benchmarks/portable.py times:
a process for each candidate, parity first, all in turn. A resolution that a model refuses is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from chosen import MODELS
from peers import CANDIDATES
from portable import Report, Row, measure
from summary import heading

from metaformer_export.errors import ImageSizeError
from metaformer_export.models.loading import load_model
from metaformer_export.report import versions
from metaformer_export.runtime import bench
from metaformer_export.runtime.threads import available_threads

BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (224, 288, 384, 448, 512)
SHOWN = ("portable in ONNX Runtime", "--target openvino --bf16", "eager")


def measure_model(name: str, batches: Sequence[int], sizes: Sequence[int], rounds: int, threads: int) -> list[Row]:
    """Rows of all batches at the model's own size, then of all other sizes at batch 1."""
    chosen = [each for each in CANDIDATES if each.name in SHOWN]
    own = max(load_model(name).spec.image_size)
    rows = measure(name, None, sorted({1, *batches}), chosen, rounds, threads)
    for size in sizes:
        if size != own and allowed(name, size):
            rows += measure(name, size, (1,), chosen, rounds, threads)
    return rows


def allowed(name: str, size: int) -> bool:
    """Whether the model takes square images of this size."""
    try:
        load_model(name, image_size=size)
    except ImageSizeError as refused:
        click.echo(f"{name}: {refused}", err=True)
        return False
    return True


def by_batch(rows: Iterable[Row], model: str, candidate: str) -> dict[int, float]:
    """Milliseconds by batch, at the model's own resolution."""
    found = [row for row in rows if (row.model, row.candidate) == (model, candidate) and row.median_ms]
    own = found[0].resolution if found else ""
    return {row.batch: row.median_ms for row in found if row.median_ms and row.resolution == own}


def by_side(rows: Iterable[Row], model: str, candidate: str) -> dict[int, float]:
    """Milliseconds by the side of a square image, at batch 1."""
    found = [row for row in rows if (row.model, row.candidate, row.batch) == (model, candidate, 1)]
    return dict(sorted((int(row.resolution.split("x")[0]), row.median_ms) for row in found if row.median_ms))


def exponent(cost: dict[int, float]) -> float | None:
    """e of the power law ms ~ x**e that fits best, None of fewer than two points."""
    if len(cost) < 2:
        return None
    x, ms = np.log(list(cost)), np.log(list(cost.values()))
    return float(np.polyfit(x, ms, 1)[0])


def markdown(report: Report) -> str:
    """Images per second by batch and milliseconds by resolution, with the exponents of their growth."""
    batches = sorted({row.batch for row in report.rows})
    sides = sorted({int(row.resolution.split("x")[0]) for row in report.rows})
    return "\n".join([
        heading(asdict(report)),
        "",
        "Latency in ms and images per second by batch, at the model's own resolution:",
        "",
        "| model | candidate | " + " | ".join(str(batch) for batch in batches) + " | ms ~ batch^ |",
        "|---|---|" + "--:|" * (len(batches) + 1),
        *(_batch_row(report, *each, batches) for each in _pairs(report)),
        "",
        "Latency in ms by side of the image, at batch 1; the exponent is that of the number of pixels:",
        "",
        "| model | candidate | " + " | ".join(str(side) for side in sides) + " | ms ~ pixels^ |",
        "|---|---|" + "--:|" * (len(sides) + 1),
        *(_side_row(report, *each, sides) for each in _pairs(report)),
    ]) + "\n"  # fmt: skip


def _pairs(report: Report) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.model, row.candidate) for row in report.rows if row.median_ms))


def _batch_row(report: Report, model: str, candidate: str, batches: Sequence[int]) -> str:
    cost = by_batch(report.rows, model, candidate)
    cells = [f"{cost[batch]:.1f} ({1e3 * batch / cost[batch]:.0f}/s)" if batch in cost else "-" for batch in batches]
    return "| " + " | ".join([model, candidate, *cells, _number(exponent(cost))]) + " |"


def _side_row(report: Report, model: str, candidate: str, sides: Sequence[int]) -> str:
    cost = by_side(report.rows, model, candidate)
    cells = [f"{cost[side]:.1f}" if side in cost else "-" for side in sides]
    of_pixels = {side**2: ms for side, ms in cost.items()}
    return "| " + " | ".join([model, candidate, *cells, _number(exponent(of_pixels))]) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(report: Report, path: Path) -> None:
    """Images per second over the batch and milliseconds over the resolution, a column of panels each."""
    from matplotlib.figure import Figure

    shown = [name for name in SHOWN if any(row.candidate == name and row.median_ms for row in report.rows)]
    figure = Figure(figsize=(11, 4 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False)
    models = list(dict.fromkeys(row.model for row in report.rows))
    for candidate, (left, right) in zip(shown, panels, strict=True):
        for colour, model in enumerate(models):
            style = {"color": f"C{colour}", "marker": "o", "markersize": 4, "linewidth": 1.2}
            if cost := by_batch(report.rows, model, candidate):
                left.plot(list(cost), [1e3 * batch / ms for batch, ms in cost.items()], label=model, **style)
            if len(sides := by_side(report.rows, model, candidate)) > 1:
                right.plot(list(sides), list(sides.values()), label=model, **style)
        left.set(title=candidate, xlabel="batch", ylabel="images per second", xscale="log", yscale="log")
        right.set(title=f"{candidate}, batch 1", xlabel="side of the image", ylabel="ms", xscale="log", yscale="log")
        _ticks(left, sorted({row.batch for row in report.rows}))
        _ticks(right, sorted({int(row.resolution.split("x")[0]) for row in report.rows}))
    lines, names = panels[0][0].get_legend_handles_labels()  # by batch, all models; not all take other sizes
    title = f"{report.date}, {report.machine}"
    figure.legend(lines, names, loc="outside upper center", ncols=5, fontsize="small", title=title)
    figure.savefig(path, metadata={"Date": None})


def _ticks(panel: Any, values: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    panel.set_xticks(values, [str(value) for value in values])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.minorticks_off()
    panel.grid(alpha=0.3)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--batch", "batches", type=int, multiple=True, default=BATCHES, show_default=True)
@click.option("--resolution", "sizes", type=int, multiple=True, default=SIZES, show_default=True)
@click.option("--rounds", type=int, default=4, show_default=True, help="Of two timed runs each.")
@click.option("--threads", type=int, default=available_threads(), help="For every candidate.")
@click.option("--redraw", is_flag=True, help="Only write the tables and the plot of the figures at --out again.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("scaling.json"), show_default=True,
    help="JSON; the tables and the plot go beside it as Markdown and SVG.",
)  # fmt: skip
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    sizes: tuple[int, ...],
    rounds: int,
    threads: int,
    redraw: bool,
    out: Path,
) -> None:
    """Time MODELS (one of each family if none is named) over batches and resolutions."""
    if redraw:
        saved = json.loads(out.read_text(encoding="utf-8"))
        report = Report(**{**saved, "rows": [Row(**row) for row in saved["rows"]]})
        _write(report, out)
        return
    report = Report(datetime.now(UTC).date().isoformat(), bench.machine(), threads, 2 * rounds, versions())
    for model in models or MODELS:
        report.rows += measure_model(model, batches, sizes, rounds, threads)
        _write(report, out)  # after each, because a model takes minutes
    click.echo(markdown(report))


def _write(report: Report, out: Path) -> None:
    out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    draw(report, out.with_suffix(".svg"))


if __name__ == "__main__":
    sys.exit(main())
