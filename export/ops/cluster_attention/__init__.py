# SPDX-License-Identifier: Apache-2.0
"""metaformer::ClusterAttention: attention inside clusters of tokens that overlap in pairs."""

from ..mixer_op import MixerOp
from .function import function
from .op import OP_TYPE
from .plugin import KERNEL
from .portable import expand

OP = MixerOp(
    op_type=OP_TYPE,
    attributes=("cluster_size", "overlap", "scale"),
    function=function,
    portable=expand,
    kernel=KERNEL,
)
