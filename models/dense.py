# SPDX-License-Identifier: Apache-2.0
"""Dense prediction: a backbone that returns its stage maps, under the prefix that detectors use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PREFIX = "backbone."


class DenseModel(nn.Module):
    """(B, in_chans, H, W) -> tuple of stage maps; the backbone's parameters are called `backbone.*`.

    `load_state_dict` also takes a bare backbone's names.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.backbone(x)
        return maps

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module's; names without the prefix get it."""
        return super().load_state_dict(prefixed(state_dict), strict=strict, assign=assign)


def prefixed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under `backbone.` names, whether they had them or not."""
    if any(name.startswith(PREFIX) for name in tensors):
        return dict(tensors)
    return {PREFIX + name: tensor for name, tensor in tensors.items()}
