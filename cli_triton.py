# SPDX-License-Identifier: Apache-2.0
"""metaformer-export triton: add an export to a Triton model repository."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from .cli_kubernetes import check_kubernetes, kubernetes_options, write_manifests
from .console import ConsoleProgress
from .errors import InputError
from .runtime.triton.options import Accelerator, Backend, Device, RepositoryOptions

if TYPE_CHECKING:
    from .runtime.triton.deployable import Deployable
    from .runtime.triton.publishing import Published

_DEFAULT = RepositoryOptions()


@click.command("triton", short_help="Add an export to a Triton model repository.")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    metavar="R",
    required=True,
    help="Model repository; made if it is not there. A server may be using it.",
)
@click.option("--name", default="", metavar="M", help="The model's name there. [default: the export's, hornet_t say]")
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default=_DEFAULT.backend,
    show_default=True,
    help="tensorrt runs model.plan, onnxruntime model.onnx; python runs ONNX Runtime in the server's Python. "
    "auto takes the engine where there is one.",
)
@click.option(
    "--device",
    type=click.Choice(get_args(Device)),
    default=_DEFAULT.device,
    show_default=True,
    help="auto: a GPU if the server has one. An engine takes a GPU in any case, the python backend only by gpu.",
)
@click.option(
    "--accelerator",
    type=click.Choice(get_args(Accelerator)),
    default=_DEFAULT.accelerator,
    show_default=True,
    help="Executor inside the onnxruntime backend: CUDA or TensorRT on a GPU, OpenVINO on a CPU.",
)
@click.option(
    "--accelerator-option",
    "accelerator_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of it, as that backend names them; may be repeated: --accelerator-option use_tf32=0.",
)
@click.option("--instances", type=click.IntRange(1), default=_DEFAULT.instances, show_default=True, metavar="N")
@click.option("--top-k", type=click.IntRange(1), default=_DEFAULT.top_k, show_default=True, metavar="K")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the classes, a line each. [default: ImageNet's for 1000 classes]",
)
@click.option(
    "--queue-timeout",
    type=float,
    default=_DEFAULT.queue_seconds,
    show_default=True,
    metavar="S",
    help="Refuse a request that has waited so many seconds.",
)
@click.option(
    "--queue-delay",
    type=float,
    metavar="MS",
    help="Milliseconds that a request may wait for others to share its batch. [default: from the latencies]",
)
@click.option(
    "--version-policy",
    default=_DEFAULT.versions,
    show_default=True,
    metavar="P",
    help="Versions that the server has ready: latest:N, all or specific:N,M.",
)
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Remove all versions but the newest N.")
@click.option("--response-cache", is_flag=True, help="Answer what was asked before from the server's cache.")
@click.option("--cuda-graphs", is_flag=True, help="Have the tensorrt backend capture CUDA graphs.")
@click.option("--max-image-mb", type=float, default=_DEFAULT.max_image_mb, show_default=True, metavar="MB")
@click.option("--max-megapixels", type=float, default=_DEFAULT.max_megapixels, show_default=True, metavar="MP")
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Time batches of 1, 2, 4, ... images here, which batching is derived from; else what the export timed.",
)
@kubernetes_options
@click.option("--force", is_flag=True, help="Also an export that is marked failed.")
@click.option("--json", "as_json", is_flag=True, help="Print what was added as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def triton_command(
    folders: tuple[Path, ...],
    repository: Path,
    measure: bool,
    force: bool,
    keep: int | None,
    as_json: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Add the export in the output folder DIR to the Triton model repository R:
    M, M_preprocess (encoded images to the model's input), M_postprocess (the
    best classes) and M_ensemble (all of them in one request).

    Versions are added, never overwritten, each in one step. Several folders are
    engines of one model for different GPUs.

    \b
    Examples:
      metaformer-export triton build/hornet_t-fp16 --repository models
      metaformer-export triton a100/hornet_t-fp16 h100/hornet_t-fp16 --repository models
    """
    del debug  # main looks for it, whichever command it follows
    options = RepositoryOptions(
        name=given["name"],
        backend=given["backend"],
        device=given["device"],
        accelerator=given["accelerator"],
        accelerator_options=tuple(_setting(text) for text in given["accelerator_options"]),
        instances=given["instances"],
        top_k=given["top_k"],
        labels=given["labels"],
        queue_seconds=given["queue_timeout"],
        queue_delay_ms=given["queue_delay"],
        versions=given["version_policy"],
        response_cache=given["response_cache"],
        cuda_graphs=given["cuda_graphs"],
        max_image_mb=given["max_image_mb"],
        max_megapixels=given["max_megapixels"],
    )
    if len(set(folders)) < len(folders):
        raise InputError("a folder is given twice.")
    check_kubernetes(given)
    from .deploying import deploy

    published, deployable = deploy(
        folders, repository, options, ConsoleProgress(), measure=measure, force=force, keep=keep
    )
    manifests = write_manifests(given, deployable)
    if as_json:
        facts = _facts(repository, published, deployable) | {"manifests": [str(path) for path in manifests]}
        click.echo(json.dumps(facts, indent=2))
        return 0
    for each in published:
        removed = f", removed {', '.join(map(str, each.removed))}" if each.removed else ""
        click.echo(
            f"{repository / each.model}: version {each.version} {'added' if each.new else 'is the same'}{removed}"
        )
    for path in manifests:
        click.echo(f"{path}: written")
    return 0


def _setting(text: str) -> tuple[str, str]:
    """A name and its value."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"--accelerator-option takes KEY=VALUE, for instance use_tf32=0; got {text!r}.")
    return name, value


def _facts(repository: Path, published: tuple[Published, ...], deployable: Deployable) -> dict[str, Any]:
    return {
        "repository": str(repository),
        "model": deployable.name,
        "backend": deployable.backend,
        "max_batch": deployable.max_batch,
        "preferred_batch_sizes": list(deployable.curve.preferred(deployable.max_batch)),
        "latencies": asdict(deployable.curve),
        "models": [asdict(each) for each in published],
    }
