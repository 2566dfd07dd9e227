# SPDX-License-Identifier: Apache-2.0
"""From a variant to its module."""

from __future__ import annotations

import torch
from torch import nn

from .dense import DenseModel
from .family import BuildOptions, Family, Variant


def build(family: Family, variant: Variant, options: BuildOptions, device: str = "cpu") -> nn.Module:
    """The bare module of a variant, parameters as the family initialises them."""
    with torch.device(device):
        module = family.build(variant.config, options)
        return DenseModel(module) if options.features else module
