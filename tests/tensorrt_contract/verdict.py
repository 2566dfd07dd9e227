# SPDX-License-Identifier: Apache-2.0
"""What was found in sources against one version of TensorRT, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .api import Entity


@dataclass(frozen=True)
class Use:
    """A name of TensorRT in a source.

    Attributes:
        place: file and line.
        what: for instance "trt.BuilderFlag.TF32", or what is done with it.
        reachable: the version gets there.
        optional: some version has to have it, not every one: an annotation, or what is looked for.
    """

    place: str
    what: str
    exists: bool
    reachable: bool
    optional: bool


@dataclass
class Check:
    """An `if` on the version.

    Attributes:
        holds: what it gives in the version, or None if that depends on more.
        lacking: how many names it looks for that the version lacks.
        kept_out: names on the side that the version does not reach.
        missing: how many of these it lacks.
    """

    place: str
    text: str
    holds: bool | None
    lacking: int
    kept_out: int = 0
    missing: int = 0


@dataclass
class Scan:
    """Sources against one version.

    Attributes:
        checks: by where they stand.
        references: where functions and methods of ours are named, by name: under which check and side of it that the
            version does not reach, or None where it does.
        fields: of our classes, those that are assigned to and known; by class and name.
    """

    version: tuple[int, ...]
    uses: list[Use] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)
    references: dict[str, list[tuple[str, bool] | None]] = field(default_factory=dict)
    fields: dict[tuple[str, str], Entity] = field(default_factory=dict)


def missing(scan: Scan) -> list[str]:
    """What the version is asked for and has not, a line each."""
    lost = [use for use in scan.uses if use.reachable and not use.exists and not use.optional]
    return sorted({f"{use.place}: TensorRT {_named(scan.version)} has no {use.what}" for use in lost})


def in_no_version(scans: Sequence[Scan]) -> list[str]:
    """What no version has, though it is only looked for or stands in an annotation."""
    found = {(use.place, use.what) for scan in scans for use in scan.uses if use.exists}
    sought = {(use.place, use.what) for scan in scans for use in scan.uses if use.optional}
    return sorted(f"{place}: no version of TensorRT has {what}" for place, what in sought - found)


def wrong_checks(scans: Sequence[Scan], behaviour: Collection[str] = ()) -> list[str]:
    """Checks of the version that change nothing, or that change at another version than the names they keep.

    Where a check changes from one version to the next, one of the two must lack a name that it is kept from. A check
    that keeps no name of TensorRT is not judged.

    Args:
        scans: in ascending order of the version.
        behaviour: checks, as "FILE: TEST", of what a version does and not of what it has; they are left alone.
    """
    wrong = []
    for key in scans[0].checks:
        row = [scan.checks[key] for scan in scans]
        file, text = row[0].place.partition(":")[0], row[0].text
        if f"{file}: {text}" in behaviour or all(check.holds is None for check in row):
            continue
        if len({check.holds for check in row}) == 1:
            wrong.append(f"{row[0].place}: `{text}` is {row[0].holds} in every version")
        for (before, low), (after, high) in pairwise(zip(row, scans, strict=True)):
            lacking = before.lacking + before.missing + after.lacking + after.missing
            if before.holds != after.holds and before.kept_out + after.kept_out and not lacking:
                between = f"TensorRT {_named(low.version)} and {_named(high.version)}"
                wrong.append(f"{before.place}: `{text}` changes between {between}, which both have what it keeps")
    return sorted(set(wrong))


def _named(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
