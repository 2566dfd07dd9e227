# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter: a per-channel circular convolution, done in the frequency domain."""

from ..mixer_op import MixerOp
from .function import function
from .op import OP_TYPE
from .plugin import KERNEL

OP = MixerOp(
    op_type=OP_TYPE,
    attributes=("height", "width"),
    function=function,
    float32="an FFT sums a whole map; its coefficients lose accuracy and overflow in 16 bits",
    float32_inside=True,
    kernel=KERNEL,
)
