# SPDX-License-Identifier: Apache-2.0
"""From a variant to its module."""

from __future__ import annotations

import torch
from torch import nn

from . import registry
from .dense import DenseModel
from .family import BuildOptions, Family, Variant


def build(family: Family, variant: Variant, options: BuildOptions, device: str = "cpu") -> nn.Module:
    """The bare module of a variant, parameters as the family initialises them."""
    with torch.device(device):
        module = family.build(variant.config, options)
        if not options.features:
            return module
        neck = registry.find_neck(family, variant, options.neck, features=True)
        return DenseModel(module, None if neck is None else neck.build(family.stage_channels(variant.config)))
