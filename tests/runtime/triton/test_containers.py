# SPDX-License-Identifier: Apache-2.0
"""Which container serves an engine."""

from __future__ import annotations

import re

import pytest

from metaformer_export.runtime.triton.containers import IMAGE, NEWEST, RELEASES, container_for


@pytest.mark.parametrize(
    ("tensorrt", "tag"),
    [
        ("11.1.0.106", "26.07-py3"),
        ("10.16.0.72", "26.03-py3"),  # not 26.05, of the same minor version
        ("10.16.1.11", "26.05-py3"),
        ("10.14.1.48", "25.12-py3"),  # three numbers are known; the newer of two
        ("10.14.1.48.post1", "25.12-py3"),
        ("11.3.0.99", "26.09-py3"),  # two are known
        ("10.11.0.33", "25.07-py3"),
        ("10.8.0.43", "25.01-py3"),  # all four numbers go before a newer container with three
        ("10.13.0.35", "25.10-py3"),  # no such patch: the newest of the minor version
        ("10.16", "26.05-py3"),
    ],
)
def test_the_newest_container_with_that_tensorrt_is_found(tensorrt: str, tag: str) -> None:
    assert container_for(tensorrt) == tag


@pytest.mark.parametrize("tensorrt", ["11.99.0.1", "10.12.0.36", "9.3.0", "10", "", "unknown"])
def test_no_container_is_made_up(tensorrt: str) -> None:
    assert container_for(tensorrt) is None


def test_every_container_is_found_by_its_own_version_or_a_newer_equal_one_is() -> None:
    for release in RELEASES:
        found = next(each for each in RELEASES if each.tag == container_for(".".join(map(str, release.tensorrt))))
        assert found.month >= release.month
        shared = min(len(found.tensorrt), len(release.tensorrt))
        assert found.tensorrt[:shared] == release.tensorrt[:shared]


def test_the_table_goes_from_new_to_old_and_never_back_to_an_older_tensorrt() -> None:
    months = [release.month for release in RELEASES]
    assert all(re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", month) for month in months)
    assert months == sorted(set(months), reverse=True)
    versions = [release.tensorrt[:2] for release in RELEASES]
    assert versions == sorted(versions, reverse=True)
    assert all(2 <= len(release.tensorrt) <= 4 for release in RELEASES)
    assert versions[0] == (11, 3)
    assert (months[-1], versions[-1]) == ("24.10", (10, 5))


def test_the_newest_is_for_repositories_without_an_engine() -> None:
    assert f"{IMAGE}:{NEWEST}" == "nvcr.io/nvidia/tritonserver:26.09-py3"
