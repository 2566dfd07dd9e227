# SPDX-License-Identifier: Apache-2.0
"""All mixer ops. A new one is one import and one entry."""

from __future__ import annotations

from . import balanced_clustering, cluster_attention, global_filter, local_attention
from .mixer_op import MixerOp

OPS: tuple[MixerOp, ...] = (
    global_filter.OP,
    balanced_clustering.OP,
    cluster_attention.OP,
    local_attention.OP,
)


def find(op_type: str) -> MixerOp | None:
    """The mixer op of that name, if there is one."""
    return next((op for op in OPS if op.op_type == op_type), None)
