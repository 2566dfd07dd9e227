# SPDX-License-Identifier: Apache-2.0
"""Attention of every position to the window around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int, stride: int, scale: float) -> Tensor:
    """Softmax attention of each query to the window x window keys around its position.

    Maps of keys and values are padded by reflection. With a stride, every stride-th query is taken.

    Args:
        q, k, v: (B, heads * d, H, W), H and W greater than window // 2.
        window: odd side of the window.
        scale: factor on the logits.

    Returns:
        (B, heads * d, ceil(H / stride), ceil(W / stride)).

    Source: Stand-Alone Self-Attention (Ramachandran et al. 2019), as in ACmix (Pan et al. 2022).
    """
    out_size = [-(-n // stride) for n in q.shape[2:]]
    if torch.compiler.is_exporting():
        exported: Tensor = torch.onnx.ops.symbolic(
            "metaformer::LocalAttention",
            (q, k, v),
            attrs={"heads": heads, "window": window, "stride": stride, "scale": scale},
            dtype=q.dtype,
            shape=(*q.shape[:2], *out_size),
            version=1,
        )
        return exported
    queries = (q[:, :, ::stride, ::stride] * scale).reshape(
        -1, heads, q.shape[1] // heads, 1, out_size[0] * out_size[1]
    )
    keys, values = (_windows(each, heads, window, stride) for each in (k, v))
    weights = (queries * keys).sum(2, keepdim=True).softmax(3)
    return (weights * values).sum(3).reshape(*q.shape[:2], *out_size)


def _windows(x: Tensor, heads: int, window: int, stride: int) -> Tensor:
    """(B, heads * d, H, W) -> (B, heads, d, window^2, positions)."""
    margin = window // 2
    padded = F.pad(x, (margin, margin, margin, margin), mode="reflect")
    columns = F.unfold(padded, window, stride=stride)
    return columns.reshape(-1, heads, x.shape[1] // heads, window * window, columns.shape[2])
