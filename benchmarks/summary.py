# SPDX-License-Identifier: Apache-2.0
"""The rows of benchmarks/portable.py as tables: every candidate, and the ratios that matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Row = Mapping[str, Any]
Key = tuple[str, str, int]

PORTABLE = "portable in ONNX Runtime"
_AGAINST = {
    "portable over torch's export, both in ONNX Runtime": (PORTABLE, "torch export in ONNX Runtime"),
    "portable in ONNX Runtime over torch.compile": (PORTABLE, "torch.compile"),
}


def ratios(rows: Iterable[Row]) -> dict[Key, dict[str, float]]:
    """For each model, resolution and batch: how many times faster ours is, by name of the comparison.

    Only rows that hold parity count. "best over best" is our fastest artefact against the fastest
    peer, any runtime and precision.
    """
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["resolution"], row["batch"]), []).append(row)
    return {key: _ratios([row for row in group if row["median_ms"]]) for key, group in groups.items()}


def _ratios(rows: list[Row]) -> dict[str, float]:
    times = {row["candidate"]: row["median_ms"] for row in rows}
    ours = min((row["median_ms"] for row in rows if row["ours"]), default=None)
    peers = min((row["median_ms"] for row in rows if not row["ours"]), default=None)
    found = {
        name: times[peer] / times[mine] for name, (mine, peer) in _AGAINST.items() if mine in times and peer in times
    }
    if ours and peers:
        found["best over best peer"] = peers / ours
    if ours and "eager" in times:
        found["best over eager"] = times["eager"] / ours
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(list(values)))))


def markdown(report: Mapping[str, Any]) -> str:
    """Machine and versions, the ratios, and all rows."""
    return "\n".join([ratio_table(report), *_row_table(report["rows"])]) + "\n"


def heading(report: Mapping[str, Any]) -> str:
    """When, on what and with which versions."""
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    timed = f"{report['threads']} threads, up to {report['rounds']} timed runs"
    return f"{report['date']}, {report['machine']}, {timed}; {packages}"


def ratio_table(report: Mapping[str, Any]) -> str:
    """The heading and, for each model, resolution and batch, how many times faster ours is."""
    found = ratios(report["rows"])
    names = [*_AGAINST, "best over best peer", "best over eager"]
    lines = [
        heading(report),
        "",
        "| model | resolution | batch | " + " | ".join(names) + " |",
        "|---|---|--:|" + "--:|" * len(names),
    ]
    for (model, resolution, batch), each in found.items():
        cells = [f"{each[name]:.2f}x" if name in each else "-" for name in names]
        lines.append("| " + " | ".join([model, resolution, str(batch), *cells]) + " |")
    for batch in sorted({key[2] for key in found}):
        group = [each for key, each in found.items() if key[2] == batch]
        columns = [[each[name] for each in group if name in each] for name in names]
        cells = [f"**{geometric_mean(column):.2f}x**" if column else "-" for column in columns]
        lines.append("| " + " | ".join(["geometric mean", "", str(batch), *cells]) + " |")
    return "\n".join(lines) + "\n"


def median_table(report: Mapping[str, Any]) -> str:
    """Milliseconds of every candidate, a column each; a dash where it fails or does not hold parity."""
    rows = report["rows"]
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    groups: dict[Key, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["resolution"], row["batch"]), {})[row["candidate"]] = row
    lines = ["| model | batch | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for (model, _, batch), group in groups.items():
        times = [group[name]["median_ms"] if name in group else None for name in names]
        fastest = min(ms for ms in times if ms)
        cells = ["-" if ms is None else f"**{ms:.1f}**" if ms == fastest else f"{ms:.1f}" for ms in times]
        lines.append("| " + " | ".join([model, str(batch), *cells]) + " |")
    failed = dict.fromkeys(f"- {row['model']}, {row['candidate']}: {row['failure']}" for row in rows if row["failure"])
    return "\n".join([*lines, *(["", *failed] if failed else [])]) + "\n"


def _row_table(rows: list[Row]) -> list[str]:
    lines = [
        "| model | resolution | batch | candidate | median ms | p90 ms | over portable | max error / std |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        measured = (
            ["-", "-", "-", row["failure"].replace("|", "/")]
            if row["failure"]
            else [
                f"{row['median_ms']:.1f}",
                f"{row['p90_ms']:.1f}",
                _times(row["over_portable"]),
                f"{row['max_error']:.1e}",
            ]
        )
        lines.append(
            "| " + " | ".join([row["model"], row["resolution"], str(row["batch"]), row["candidate"], *measured]) + " |"
        )
    return lines


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
