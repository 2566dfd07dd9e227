# SPDX-License-Identifier: Apache-2.0
"""Seeded weights for a model without a checkpoint, with every branch alive."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

_SPREAD = {"complex_weight": 0.5, "pos_embed": 0.2, "relative_position_bias_table": 0.2}
"""Parameters whose spread does not follow from their shape: what is added or multiplied has no fan-in."""


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Fill all parameters in place, each from its own name and the seed.

    Layer scales are drawn around 0.5. The usual 1e-6 would make every block the identity, so that
    an exporter with a wrong token mixer would pass a parity check unseen.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_scaled(name, noise).to(parameter.dtype))


def _scaled(name: str, noise: Tensor) -> Tensor:
    *_, module, leaf = f".{name}".split(".")
    if module.startswith("res_scale"):  # on the residual itself: halving it in every block amplifies rounding errors
        return 1.0 + 0.1 * noise
    if leaf in _SPREAD:
        return _SPREAD[leaf] * noise
    if leaf == "random_matrix":  # weights of an average
        return noise.abs() / noise.abs().sum(-1, keepdim=True)
    if noise.ndim > 1:
        return noise / math.sqrt(math.prod(noise.shape[1:]))
    if leaf == "bias":
        return 0.1 * noise
    return (1.0 if leaf == "weight" else 0.5) + 0.1 * noise
