# SPDX-License-Identifier: Apache-2.0
"""metaformer::LocalAttention: attention of every position to the window around it."""

from ..mixer_op import MixerOp
from .function import function
from .op import OP_TYPE
from .plugin import KERNEL
from .portable import expand

OP = MixerOp(
    op_type=OP_TYPE,
    attributes=("heads", "window", "stride", "scale"),
    function=function,
    portable=expand,
    kernel=KERNEL,
)
