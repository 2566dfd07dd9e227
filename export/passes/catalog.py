# SPDX-License-Identifier: Apache-2.0
"""Which passes make which form, in order."""

from __future__ import annotations

from .affine_after_pooling import AffineAfterPooling
from .affine_to_depthwise_conv import AffineToDepthwiseConv
from .attach_plugin import AttachPlugin
from .base import Pass
from .clean_up import CleanUp
from .distribute_splits import DistributeSplits
from .expand_mixer_ops import ExpandMixerOps
from .fold_affine_into_next import FoldAffineIntoNext
from .fold_scales import FoldScales
from .fuse_channel_layer_norm import FuseChannelLayerNorm
from .global_filter_to_matmul import GlobalFilterToMatmul
from .linear_to_pointwise_conv import LinearToPointwiseConv
from .merge_factors import MergeFactors
from .merge_transposes import MergeTransposes
from .name_after_modules import NameAfterModules
from .pooling_residual_to_conv import PoolingResidualToConv
from .residuals_to_channels_first import ResidualsToChannelsFirst
from .resize_spectral_filters import ResizeSpectralFilters
from .square_by_product import SquareByProduct
from .static_reshapes import StaticReshapes

_COMMON: tuple[Pass, ...] = (
    StaticReshapes(),
    ResizeSpectralFilters(),
    FuseChannelLayerNorm(),
    FoldScales(),  # after the norms: gnConv's s goes into a global-local filter's last norm
)

PORTABLE: tuple[Pass, ...] = (
    *_COMMON,
    FoldAffineIntoNext(),
    AffineAfterPooling(),
    MergeFactors(),
    SquareByProduct(),
    GlobalFilterToMatmul(),
    ExpandMixerOps(),
    ResidualsToChannelsFirst(),
    LinearToPointwiseConv(),  # after FoldScales, which clears the factor between linear and transpose
    MergeTransposes(),
    AffineToDepthwiseConv(),
    PoolingResidualToConv(),
    DistributeSplits(),
    CleanUp(),
    NameAfterModules(),  # last: names are derived from what is left
)
"""Standard operators only, for ONNX Runtime, OpenVINO and any other ONNX consumer."""

PLUGIN: tuple[Pass, ...] = (
    *_COMMON,
    MergeTransposes(),
    AttachPlugin(),
    CleanUp(),
    NameAfterModules(),
)
"""Mixer ops as plugin nodes, for TensorRT; splits and linear layers stay whole, as its own fusions want them."""

FORMS: dict[str, tuple[Pass, ...]] = {"portable": PORTABLE, "plugin": PLUGIN}
