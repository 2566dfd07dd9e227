# SPDX-License-Identifier: Apache-2.0
"""Options of `triton --kserve`: servers of the repository in a Kubernetes cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import InputError

if TYPE_CHECKING:
    from .runtime.triton.deployable import Deployable

_OPTIONS = (
    click.option(
        "--kserve",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Write manifests for Kubernetes there: an InferenceService of KServe, and a Deployment with Service and "
        "HorizontalPodAutoscaler for a cluster without it.",
    ),
    click.option(
        "--storage", metavar="URI", help="Where the cluster finds R: pvc://CLAIM/PATH, s3://... or gs://... [--kserve]"
    ),
    click.option("--image", metavar="NAME:TAG", help="The serve image, in a registry of the cluster's. [--kserve]"),
    click.option("--gpus", type=click.IntRange(0), metavar="N", help="Of each pod. [default: 1 for an engine, else 0]"),
    click.option("--cpu", default="4", show_default=True, metavar="N", help="Of each pod."),
    click.option("--memory", default="8Gi", show_default=True, metavar="SIZE", help="Of each pod."),
    click.option("--replicas", default="1:4", show_default=True, metavar="MIN:MAX", help="Pods."),
    click.option(
        "--queue-target",
        type=click.IntRange(1),
        metavar="N",
        help="Waiting requests per pod that bring more pods. [default: half a second's, as measured]",
    ),
    click.option("--namespace", metavar="NAME", help="Of the cluster. [default: kubectl's]"),
    click.option("--prometheus", metavar="URL", help="Scale the InferenceService by its queue, through KEDA."),
)
_REPLICAS = re.compile(r"(\d{1,4}):(\d{1,4})")
_WAIT_S = 0.5


def kubernetes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, on a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_kubernetes(given: Mapping[str, Any]) -> None:
    """InputError if manifests are asked for and something they need is not, before any work is done."""
    if given["kserve"] is None:
        alone = [
            name for name in ("storage", "image", "gpus", "queue_target", "namespace", "prometheus") if given[name]
        ]
        if alone:
            raise InputError(f"--{alone[0].replace('_', '-')} is for the manifests; give --kserve FOLDER, too.")
        return
    missing = [f"--{name}" for name in ("storage", "image") if not given[name]]
    if missing:
        raise InputError(
            f"--kserve needs {' and '.join(missing)}: where the cluster finds the repository, and the image that "
            "docker build --target serve makes, with a tag, in a registry of its own."
        )
    if not _REPLICAS.fullmatch(given["replicas"]):
        raise InputError(f"--replicas takes MIN:MAX, for instance 1:4; got {given['replicas']!r}.")
    from .runtime.triton.kubernetes_settings import Deployment

    Deployment(name="checked", **_settings(given, gpus=given["gpus"] or 0, queue_target=1))


def write_manifests(given: Mapping[str, Any], deployable: Deployable) -> tuple[Path, ...]:
    """Write them for a model that was added to the repository; () if none are asked for."""
    if given["kserve"] is None:
        return ()
    from .runtime.triton.config import ensemble_name
    from .runtime.triton.kubernetes import write
    from .runtime.triton.kubernetes_settings import Deployment, kubernetes_name

    gpus = given["gpus"] if given["gpus"] is not None else int(deployable.backend == "tensorrt")
    each_second = deployable.curve.images_per_second() or 0
    target = given["queue_target"] or max(1, round(_WAIT_S * each_second))
    deployment = Deployment(
        name=kubernetes_name(deployable.name),
        models=(ensemble_name(deployable.name), deployable.name),
        **_settings(given, gpus=gpus, queue_target=target),
    )
    return write(given["kserve"], deployment)


def _settings(given: Mapping[str, Any], *, gpus: int, queue_target: int) -> dict[str, Any]:
    least, _, most = given["replicas"].partition(":")
    return {
        "image": given["image"],
        "storage": given["storage"],
        "gpus": gpus,
        "cpu": given["cpu"],
        "memory": given["memory"],
        "replicas_min": int(least),
        "replicas_max": int(most),
        "queue_target": queue_target,
        "namespace": given["namespace"],
        "prometheus": given["prometheus"],
    }
