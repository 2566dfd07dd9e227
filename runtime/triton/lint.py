# SPDX-License-Identifier: Apache-2.0
"""What a server would refuse, or answer wrongly, found in a model repository without a server.

A rule is a function of one model and the whole repository that says what is wrong; `RULES` has them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..tensorrt.environment import AHEAD_OF_TIME, parse_version
from .deployable import Tensor
from .publishing import versions_of
from .schema import CONFIG, data_type_name, read
from .served import FILES, Served
from .wiring import agree, ensemble, fits

_BYTES = {"FP32": 4, "FP16": 2, "BF16": 2, "INT64": 8, "INT32": 4, "UINT8": 1}


@dataclass(frozen=True)
class Finding:
    """Something wrong with a model, and the rule that found it."""

    model: str
    rule: str
    text: str


Rule = Callable[[Served, Mapping[str, Served]], Iterator[str]]


def lint(repository: Path) -> tuple[Finding, ...]:
    """All that is wrong with the models of a repository; () if nothing is.

    Raises:
        InputError: there is no such folder, or no model in it.
    """
    if not repository.is_dir():
        raise InputError(f"{repository} is no folder; give a Triton model repository.")
    folders = [each for each in sorted(repository.iterdir()) if each.is_dir()]
    if not folders:
        raise InputError(
            f"{repository} has no models; metaformer-export triton DIR --repository {repository} adds one."
        )
    models: dict[str, Served] = {}
    findings = []
    for folder in folders:
        try:
            models[folder.name] = Served(folder, read(folder / CONFIG))
        except InputError as error:
            findings.append(Finding(folder.name, "schema", str(error)))
    for name, model in models.items():
        for rule, check in RULES.items():
            try:
                findings += [Finding(name, rule, text) for text in check(model, models)]
            except InputError as error:  # a file that cannot be read
                findings.append(Finding(name, rule, str(error)))
    return tuple(findings)


def _name(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    if model.config.name not in ("", model.folder.name):
        yield f"the configuration is of {model.config.name}, the folder is {model.folder.name}"


def _files(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    if not model.ensemble and model.backend not in FILES:
        yield f"backend {model.backend or 'none'} is not one of {', '.join(FILES)}"
    for version in model.versions:
        for name in (*model.file_names(), *model.weights(version)):
            if not (version / name).is_file():
                yield f"version {version.name} has no {name}"


def _versions(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    found = versions_of(model.folder)
    if not found:
        yield "there is no version: a folder named by a number without leading zeros"
    for wanted in model.config.version_policy.specific.versions:
        if wanted not in found:
            yield f"the version policy asks for version {wanted}, which is not there"


def _tensors(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    """Names, types and sizes against the file, but for the batch."""
    del models
    for version in model.versions:
        if found := model.tensors(version):
            inputs, outputs = found
            yield from _compared(model, f"version {version.name}", "input", inputs)
            yield from _compared(model, f"version {version.name}", "output", outputs)


def _compared(model: Served, version: str, what: str, file: list[Tensor]) -> Iterator[str]:
    by_name = {each.name: each for each in file}
    for ours in getattr(model.config, what):
        theirs = by_name.get(ours.name)
        if theirs is None:
            yield f"{version} has no {what} {ours.name}; it has {', '.join(by_name)}"
            continue
        if (kind := data_type_name(ours.data_type)) != theirs.data_type:
            yield f"{what} {ours.name} is {kind}, in {version} {theirs.data_type}"
        sizes = theirs.dims[1:] if model.config.max_batch_size > 0 else theirs.dims
        if not fits(tuple(ours.dims), sizes):
            yield f"{what} {ours.name} is {list(ours.dims)}, in {version} {list(sizes)}"


def _batch_dimension(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    for version in model.versions:
        for each in (tensor for tensors in model.tensors(version) or () for tensor in tensors):
            if model.config.max_batch_size > 0 and each.dims[:1] != (-1,):
                has = f"a fixed batch of {each.dims[0]}" if each.dims else "no batch"
                yield (
                    f"max_batch_size is {model.config.max_batch_size}, but {each.name} of version {version.name} has "
                    f"{has}"
                )


def _profile(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    for file, engine in model.engines():
        least, _, largest = engine["batch"]
        if model.config.max_batch_size > largest:
            yield f"max_batch_size is {model.config.max_batch_size}, and the profile of {file} ends at {largest}"
        if least > 1:
            yield f"the profile of {file} begins at {least} images: a server sends single ones, too"


def _plugins(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    for file, engine in model.engines():
        if engine.get("plugins") and parse_version(engine["version"])[:2] < AHEAD_OF_TIME:
            yield (
                f"TensorRT {engine['version']} runs the plugins of {file} ({', '.join(engine['plugins'])}) in Python, "
                "which a server has not; build it with TensorRT 10.9 or later, or with --no-plugins"
            )
        if engine.get("options", {}).get("strip_plan"):
            yield f"{file} was built without its weights (--strip-plan), which a server does not put back"


def _batch_sizes(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    largest = model.config.max_batch_size
    if model.config.HasField("dynamic_batching") and largest < 1:
        yield "dynamic batching needs a max_batch_size of 1 or more"
    for size in model.config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= largest:
            yield f"preferred batch size {size} is not between 1 and max_batch_size {largest}"
    for graph in model.config.optimization.cuda.graph_spec:
        if graph.batch_size > largest:
            yield f"a CUDA graph is for batches of {graph.batch_size}, above max_batch_size {largest}"


def _labels(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    for output in model.config.output:
        if not output.label_filename:
            continue
        path = model.folder / output.label_filename
        if not path.is_file():
            yield f"output {output.name} is named by {output.label_filename}, which is not there"
            continue
        lines, sizes = len(path.read_bytes().splitlines()), list(output.dims)
        if sizes[-1:] not in ([lines], [-1]):
            yield f"{output.label_filename} names {lines} classes, and {output.name} is {sizes}"


def _warm_up(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    del models
    inputs = {each.name: each for each in model.config.input}
    for sample in model.config.model_warmup:
        if sample.batch_size > max(1, model.config.max_batch_size):
            yield f"warm-up {sample.name!r} is of {sample.batch_size} images, above max_batch_size"
        for name in sorted(set(inputs) - set(sample.inputs)):
            yield f"warm-up {sample.name!r} does not give the input {name}"
        for name, given in sample.inputs.items():
            what = f"warm-up {sample.name!r} gives {name}"
            if name in inputs:
                yield from agree(what, given, inputs[name])
            else:
                yield f"{what}, which is no input"
            if given.input_data_file:
                yield from _warm_up_file(f"warm-up {sample.name!r}", name, given, model)


def _warm_up_file(sample: str, name: str, given: Any, model: Served) -> Iterator[str]:
    path = model.folder / "warmup" / given.input_data_file
    if not path.is_file():
        yield f"{sample} reads warmup/{given.input_data_file}, which is not there"
        return
    width = _BYTES.get(data_type_name(given.data_type))
    if width is not None and path.stat().st_size != (wanted := width * math.prod(given.dims)):
        yield f"warmup/{path.name} has {path.stat().st_size} bytes, and {name} {wanted}"


RULES: Mapping[str, Rule] = {
    "name": _name,
    "files": _files,
    "versions": _versions,
    "tensors": _tensors,
    "batch-dimension": _batch_dimension,
    "profile": _profile,
    "plugins": _plugins,
    "batch-sizes": _batch_sizes,
    "labels": _labels,
    "warm-up": _warm_up,
    "ensemble": ensemble,
}
