# SPDX-License-Identifier: Apache-2.0
"""metaformer::BalancedClustering: tokens sorted into clusters of equal size."""

from ..mixer_op import MixerOp
from .function import function
from .op import OP_TYPE
from .plugin import KERNEL
from .portable import expand

OP = MixerOp(
    op_type=OP_TYPE,
    attributes=("cluster_size", "levels"),
    function=function,
    portable=expand,
    float32="it decides by sorting; a rounded similarity puts tokens into another cluster",
    float32_inputs=True,
    kernel=KERNEL,
)
