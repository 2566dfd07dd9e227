# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's containers of the Triton Inference Server and the TensorRT in each.

An engine loads in the TensorRT that built it, so the engine says which container can serve it. NVIDIA's containers of
one month, tensorrt:YY.MM-py3 and tritonserver:YY.MM-py3, carry the same TensorRT.

Source: NVIDIA's release notes and support matrices of these containers, and what their users report of them, as far as
either was found. A version has as many numbers as were found, and months of which none was found are left out, 26.10
among them. All containers have Python 3.12, 24.10 has 3.10; NumPy below 2, and no Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..tensorrt.environment import parse_version

IMAGE = "nvcr.io/nvidia/tritonserver"
"""Where the containers are, before a colon and the tag."""


@dataclass(frozen=True)
class Release:
    """One month's container.

    Attributes:
        month: YY.MM.
        tensorrt: its version in numbers, at least two.
    """

    month: str
    tensorrt: tuple[int, ...]

    @property
    def tag(self) -> str:
        """Of the image with all backends."""
        return f"{self.month}-py3"


RELEASES = tuple(
    Release(month, parse_version(tensorrt))
    for month, tensorrt in {
        "26.09": "11.3",
        "26.08": "11.2.1.2",
        "26.07": "11.1.0.106",
        "26.06": "11.0.0.114",
        "26.05": "10.16.1.11",
        "26.04": "10.16.1",
        "26.03": "10.16.0.72",
        "26.02": "10.15.1",
        "25.12": "10.14.1",
        "25.11": "10.14.1",
        "25.10": "10.13.3",
        "25.08": "10.13.2",
        "25.07": "10.11.0.33",
        "25.06": "10.11.0.33",
        "25.05": "10.10.0.31",
        "25.04": "10.9.0",
        "25.03": "10.9",
        "25.02": "10.8.0",
        "25.01": "10.8.0.43",
        "24.12": "10.7",
        "24.11": "10.6",
        "24.10": "10.5",
    }.items()
)
"""The newest first."""

NEWEST = RELEASES[0].tag
"""For a repository without an engine, which any container can serve."""


def container_for(tensorrt_version: str) -> str | None:
    """Tag of the newest container that has this TensorRT.

    Args:
        tensorrt_version: as TensorRT writes it, "10.13.3.9" or "10.14.1.48.post1".

    Returns:
        The container whose version agrees in all four numbers; else in the first three; else in the first two, which an
        engine may be too strict for; None where no container agrees so far.
    """
    asked = parse_version(tensorrt_version)
    for numbers in (4, 3, 2):
        for release in RELEASES:
            if len(release.tensorrt) >= numbers <= len(asked) and release.tensorrt[:numbers] == asked[:numbers]:
                return release.tag
    return None
