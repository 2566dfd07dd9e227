# SPDX-License-Identifier: Apache-2.0
"""Dense prediction: a backbone that returns its stage maps, and a neck, under the prefixes that detectors use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PREFIX = "backbone."
NECK_PREFIX = "neck."


class DenseModel(nn.Module):
    """(B, in_chans, H, W) -> tuple of stage maps, or of the neck's levels.

    The backbone's parameters are called `backbone.*`, the neck's `neck.*`; `load_state_dict` also takes
    a bare backbone's names.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.backbone(x)
        return maps if self.neck is None else tuple(self.neck(maps))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module's; names without the prefix get it."""
        return super().load_state_dict(prefixed(state_dict), strict=strict, assign=assign)


def prefixed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under `backbone.` names, whether they had them or not."""
    if any(name.startswith(PREFIX) for name in tensors):
        return dict(tensors)
    return {PREFIX + name: tensor for name, tensor in tensors.items()}
