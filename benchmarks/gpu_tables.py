# SPDX-License-Identifier: Apache-2.0
"""What was measured on a GPU, as lines while it runs and as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_kernels import TARGETS, KernelRow
from gpu_models import ModelRow, ParityRow


def line_of(row: KernelRow | ParityRow | ModelRow) -> str:
    """One row in a line."""
    if isinstance(row, KernelRow):
        named = f"{row.op} {row.size}{_stride(row)} {row.dtype}"
        return f"{named}: {row.failure or f'{_accuracy(row)}; {_speed(row)}'}"
    named = f"{row.model} {row.dtype}, {row.way}"
    if row.failure:
        return f"{named}: {row.failure}"
    if isinstance(row, ModelRow):
        return f"{named}: {_ms(row.median_ms)} ms, on the GPU {_ms(row.gpu_ms)} ms, {_times(row.over_eager)} eager"
    clusters = "" if row.rms_same_clusters is None else f", with the same clusters {_error(row.rms_same_clusters)}"
    return f"{named}: rms error {_error(row.rms_error)}{clusters}, top-1 {_percent(row.top1)}"


def kernel_table(rows: Sequence[KernelRow]) -> str:
    """Accuracy and times of every kernel."""
    head = (
        "operator",
        "size",
        "batch",
        "type",
        "error",
        "eager's",
        "kernel us",
        "eager us",
        "gain",
        "of the floor",
        "",
    )
    return _table(
        head,
        [
            (row.op, f"{row.size}{_stride(row)}", row.batch, row.dtype, _accuracy(row), _accuracy_of_eager(row),
             _us(row.kernel_us), _us(row.eager_us), _times(row.over_eager), _percent(row.floor_share), _verdict(row))
            for row in rows
        ],
        texts=(0, 1, 3, 10),
    )  # fmt: skip


def parity_table(rows: Sequence[ParityRow]) -> str:
    """Errors of whole models against float64."""
    head = (
        "model",
        "type",
        "way",
        "rms error",
        "max error",
        "top-1",
        "same clusters: rms",
        "tokens alike",
        "alone",
        "",
    )
    return _table(
        head,
        [
            (row.model, row.dtype, row.way, _error(row.rms_error), _error(row.max_error), _percent(row.top1),
             _error(row.rms_same_clusters), _percent(row.clusters), _percent(row.clusters_alone),
             row.failure or "holds")
            for row in rows
        ],
        texts=(0, 1, 2, 9),
    )  # fmt: skip


def model_table(rows: Sequence[ModelRow]) -> str:
    """Times of whole models."""
    head = ("model", "type", "batch", "way", "ms", "p90", "GPU alone ms", "host ms", "gain", "gain, GPU alone", "")
    return _table(
        head,
        [
            (row.model, row.dtype, row.batch, row.way, _ms(row.median_ms), _ms(row.p90_ms), _ms(row.gpu_ms),
             _ms(row.host_ms), _times(row.over_eager), _times(row.over_eager_gpu), row.failure)
            for row in rows
        ],
        texts=(0, 1, 3, 10),
    )  # fmt: skip


def verdicts(rows: Iterable[KernelRow]) -> list[str]:
    """For each operator with targets, how many of its sizes reach them."""
    found = {op_type: [row for row in rows if row.op == op_type] for op_type in TARGETS}
    lines = []
    for op_type, each in found.items():
        target, reached = TARGETS[op_type], sum(row.missed == [] for row in each)
        floor = "" if target.floor_share is None else f" and {100 * target.floor_share:.0f} % of the floor"
        if each:
            lines.append(f"{op_type}: {reached} of {len(each)} reach {target.over_eager:g}x eager{floor}")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], texts: tuple[int, ...]) -> str:
    """Markdown; `texts` are the columns that are not numbers."""
    rules = ["---" if i in texts else "--:" for i in range(len(head))]
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *cells)) + "\n"


def _stride(row: KernelRow) -> str:
    return ", stride 2" if row.attributes.get("stride", 1) == 2 else ""


def _accuracy(row: KernelRow) -> str:
    """Of the kernel: root mean square and largest error, or tokens in float64's clusters."""
    return _told(row.rms_error, row.max_error, row.same_clusters)


def _accuracy_of_eager(row: KernelRow) -> str:
    return _told(row.eager_rms_error, row.eager_max_error, row.eager_same_clusters)


def _told(rms: float | None, largest: float | None, same: float | None) -> str:
    if same is not None:
        return f"{100 * same:.3f} % alike"
    return "" if rms is None else f"{_error(rms)} (max {_error(largest)})"


def _speed(row: KernelRow) -> str:
    late = f", host late {row.late}x" if row.late else ""
    return (
        f"{_us(row.kernel_us)} us, eager {_us(row.eager_us)} us: {_times(row.over_eager)}, "
        f"{_percent(row.floor_share)} of the floor{late}"
    )


def _verdict(row: KernelRow) -> str:
    if row.failure:
        return row.failure
    return "" if row.missed is None else "; ".join(row.missed) or "reached"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _us(time: float | None) -> str:
    return "" if time is None else f"{time:.1f}"


def _ms(time: float | None) -> str:
    return "" if time is None else f"{time:.2f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
