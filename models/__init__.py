# SPDX-License-Identifier: Apache-2.0
"""Model families in eager PyTorch, under their authors' parameter names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .sizes import Sizes


def create_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    features: bool = False,
    neck: str = "",
    sizes: Sizes | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a model in eval mode, float32.

    Args:
        name: full or short name, for instance "hornet_tiny_gf" or "hornet_t_gf".
        checkpoint: .pth, .pt, .bin or .safetensors, under the authors' names, timm's or Hugging Face's;
            None fills the weights from the seed, with every branch alive.
        num_classes: None takes the checkpoint's, or 1000.
        image_size: side or (height, width) in pixels that the model will be run at; checked against
            what the family allows. None is the variant's own size.
        in_chans: input channels.
        features: return the stage maps as a tuple instead of logits; parameters are then under
            `backbone.`.
        neck: name of a detection neck that turns the stage maps into the levels of a pyramid, for
            instance "horfpn_7x7"; needs features. Its parameters are under `neck.`.
        sizes: another width, dims, depths or heads than the variant's, as far as its family has them, for instance
            {"width": 16, "depths": (1, 1, 2, 1)}: a network of the family between or below the authors'.
        seed: of the random weights.

    Returns:
        A module (B, in_chans, H, W) -> (B, num_classes), or a tuple of (B, C_i, H_i, W_i).

    Raises:
        UnknownModelError: no such model; the message suggests the nearest names.
        ImageSizeError: the family cannot run at that size.
        InputError: no such neck for this model, or a neck without features, or sizes that it cannot have.
        CheckpointError: the file cannot be used; the message says why.
    """
    from .loading import load_model

    return load_model(
        name,
        checkpoint=checkpoint,
        num_classes=num_classes,
        image_size=image_size,
        in_chans=in_chans,
        features=features,
        neck=neck,
        sizes=sizes,
        seed=seed,
    ).module
