# SPDX-License-Identifier: Apache-2.0
"""How the models of an ensemble hang together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .schema import ModelConfig, data_type_name
from .served import Served


def ensemble(model: Served, models: Mapping[str, Served]) -> Iterator[str]:
    """Every tensor is made before it is taken, by a model that is there, in the type and size it is taken in."""
    if not model.ensemble:
        return
    if model.config.instance_group:
        yield "an ensemble has no instances of its own"
    made = {each.name: each for each in model.config.input}
    waiting = list(model.config.ensemble_scheduling.step)
    for step in waiting:
        if step.model_name not in models:
            if not (model.folder.parent / step.model_name).is_dir():  # else its configuration has been complained of
                yield f"step {step.model_name} is no model of this repository"
            return
        if models[step.model_name].config.max_batch_size < model.config.max_batch_size:
            yield f"max_batch_size is above that of step {step.model_name}"
        yield from _mapped(step, models[step.model_name].config)
    while ready := [step for step in waiting if set(step.input_map.values()) <= set(made)]:
        for step in ready:
            waiting.remove(step)
            config = models[step.model_name].config
            takes, gives = ({each.name: each for each in field} for field in (config.input, config.output))
            for name, tensor in step.input_map.items():
                if name in takes:
                    yield from agree(f"{step.model_name} takes {tensor}", takes[name], made[tensor])
            made |= {tensor: gives[name] for name, tensor in step.output_map.items() if name in gives}
    for step in waiting:
        missing = ", ".join(sorted(set(step.input_map.values()) - set(made)))
        yield f"step {step.model_name} waits for {missing}, which no step before it makes"
    for output in model.config.output:
        if output.name not in made:
            yield f"no step makes the output {output.name}"
        else:
            yield from agree(f"the ensemble gives {output.name}", output, made[output.name])


def _mapped(step: Any, config: ModelConfig) -> Iterator[str]:
    """A step fills all inputs of its model, and takes outputs that it has."""
    takes, gives = ({each.name for each in field} for field in (config.input, config.output))
    for name in sorted(takes - set(step.input_map)):
        yield f"step {step.model_name} does not fill the input {name}"
    for what, given, known in (("input", step.input_map, takes), ("output", step.output_map, gives)):
        for name in sorted(set(given) - known):
            yield f"step {step.model_name} names an {what} {name}, which the model has not"


def agree(what: str, ours: Any, theirs: Any) -> Iterator[str]:
    """In which of type and sizes two tensors of configurations differ."""
    ours_kind, theirs_kind = data_type_name(ours.data_type), data_type_name(theirs.data_type)
    if ours_kind != theirs_kind:
        yield f"{what} as {ours_kind}, and it is {theirs_kind}"
    if not _may_equal(tuple(ours.dims), tuple(theirs.dims)):
        yield f"{what} as {list(ours.dims)}, and it is {list(theirs.dims)}"


def _may_equal(dims: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Whether sizes may be the same, of which -1 on either side is any: the server looks again at each request."""
    return len(dims) == len(others) and all(-1 in pair or pair[0] == pair[1] for pair in zip(dims, others, strict=True))


def fits(dims: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether sizes, of which -1 is any, take dims."""
    return len(dims) == len(sizes) and all(size in (-1, dim) for dim, size in zip(dims, sizes, strict=True))
