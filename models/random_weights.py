# SPDX-License-Identifier: Apache-2.0
"""Seeded weights for a model without a checkpoint, with every branch alive."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = (
    Tensor.uniform_,
    Tensor.normal_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
)
"""What fills a tensor, its first argument, with random numbers. Modules must not use `trunc_normal_`: where nothing is
drawn, it repeats without end until all numbers are within its bounds.
"""

_SPREAD = {"complex_weight": 0.5, "pos_embed": 0.2, "relative_position_bias_table": 0.2}
"""Parameters whose spread does not follow from their shape: what is added or multiplied has no fan-in."""


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Fill all parameters in place, each from its own name and the seed.

    Layer scales are drawn around 0.5. The usual 1e-6 would make every block the identity, so that
    an exporter with a wrong token mixer would pass a parity check unseen.
    """

    def draw(name: str, parameter: nn.Parameter) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        # In place: what a thread frees stays with the process, in a heap of its own that glibc does not trim.
        _scale(name, parameter.data.normal_(generator=generator))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # torch draws with one thread
        for drawn in [pool.submit(draw, name, parameter) for name, parameter in model.named_parameters()]:
            drawn.result()


class Unfilled(TorchFunctionMode):
    """Modules that are made inside have whatever is in memory for what torch would draw at random: for those that
    are filled at once, where drawing a large model's weights takes seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call itself, unless it draws."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _scale(name: str, noise: Tensor) -> None:
    """Make a parameter out of noise with mean 0 and spread 1, in place."""
    *_, module, leaf = f".{name}".split(".")
    if module.startswith("res_scale"):  # on the residual itself: halving it in every block amplifies rounding errors
        noise.mul_(0.1).add_(1.0)
    elif leaf in _SPREAD:
        noise.mul_(_SPREAD[leaf])
    elif leaf == "random_matrix":  # weights of an average
        noise.abs_().div_(noise.sum(-1, keepdim=True))
    elif noise.ndim > 1:
        noise.div_(math.sqrt(math.prod(noise.shape[1:])))
    elif leaf == "bias":
        noise.mul_(0.1)
    else:
        noise.mul_(0.1).add_(1.0 if leaf == "weight" else 0.5)
