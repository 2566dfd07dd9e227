# SPDX-License-Identifier: Apache-2.0
"""Which passes make which form, in order."""

from __future__ import annotations

from collections.abc import Mapping

from ...artifacts import LoweringForm
from .affine_after_pooling import AffineAfterPooling
from .affine_to_depthwise_conv import AffineToDepthwiseConv
from .attach_plugin import AttachPlugin
from .base import Pass
from .centre_residuals import CentreResiduals
from .clean_up import CleanUp
from .compose_channel_mixing import ComposeChannelMixing
from .distribute_splits import DistributeSplits
from .expand_mixer_ops import ExpandMixerOps
from .fold_affine_into_next import FoldAffineIntoNext
from .fold_scales import FoldScales
from .fuse_channel_layer_norm import FuseChannelLayerNorm
from .global_filter_to_dft import GlobalFilterToDft
from .global_filter_to_matmul import GlobalFilterToMatmul
from .linear_maps_to_conv import LinearMapsToConv
from .linear_to_pointwise_conv import LinearToPointwiseConv
from .merge_factors import MergeFactors
from .merge_transposes import MergeTransposes
from .name_after_modules import NameAfterModules
from .pointwise_conv_to_linear import PointwiseConvToLinear
from .pooling_residual_to_conv import PoolingResidualToConv
from .residuals_to_channels_first import ResidualsToChannelsFirst
from .resize_spectral_filters import ResizeSpectralFilters
from .square_by_product import SquareByProduct
from .static_reshapes import StaticReshapes
from .stripes_to_groups import StripesToGroups
from .write_out_layer_norm import WriteOutLayerNorm

_FIRST: tuple[Pass, ...] = (
    StaticReshapes(),
    ResizeSpectralFilters(),
    ComposeChannelMixing(),
)

_FOLDED: tuple[Pass, ...] = (
    FoldScales(),  # after the norms: gnConv's s goes into a global-local filter's last norm
    FoldAffineIntoNext(),
    AffineAfterPooling(),
    MergeFactors(),
    SquareByProduct(),
    GlobalFilterToMatmul(),
    ExpandMixerOps(),
)

_LAST: tuple[Pass, ...] = (
    CleanUp(),
    NameAfterModules(),  # last: names are derived from what is left
)

PORTABLE: tuple[Pass, ...] = (
    *_FIRST,
    FuseChannelLayerNorm(),
    *_FOLDED,
    StripesToGroups(),
    ResidualsToChannelsFirst(),
    LinearToPointwiseConv(),  # after FoldScales, which clears the factor between linear and transpose
    MergeTransposes(),
    AffineToDepthwiseConv(),
    PoolingResidualToConv(),
    DistributeSplits(),
    FoldScales(),  # once more: queries have a layer of their own now, and take the scale of their attention
    *_LAST,
)
"""Standard operators only, for any ONNX consumer, in the layouts that ONNX Runtime runs best."""

INT8: tuple[Pass, ...] = (
    *_FIRST,
    FuseChannelLayerNorm(),
    *_FOLDED,
    StripesToGroups(),
    MergeTransposes(),
    DistributeSplits(),
    FoldScales(),  # as above
    PointwiseConvToLinear(),  # after DistributeSplits, which shows what convolutions read
    MergeTransposes(),
    *_LAST,
)
"""Standard operators only, for ONNX Runtime to run in eight bits: layers stay linear wherever float32 reads their
results, because a convolution in eight bits has its result in eight bits, too. In ms, and of the portable form, on two
cores with AVX2: FocalNet-T 43.3 and 45.6, ACmix-Swin-T 53.6 and 58.4, CAFormer-S18 39.8 and 43.6."""

OPENVINO: tuple[Pass, ...] = (
    *_FIRST,
    FoldScales(),  # layer scales, so that what is added to a stream is a layer's result
    ResidualsToChannelsFirst(norms_only=True),
    CentreResiduals(),
    WriteOutLayerNorm(),
    *_FOLDED,
    LinearToPointwiseConv(),
    MergeTransposes(),
    *_LAST,
)
"""Standard operators only; OpenVINO fuses elementwise chains and splits itself, and runs a norm over channels
fastest as it is written, without transposes."""

OPENVINO_INT8: tuple[Pass, ...] = (
    *_FIRST,
    FoldScales(),  # as for OpenVINO
    ResidualsToChannelsFirst(norms_only=True),
    CentreResiduals(),
    LinearMapsToConv(),
    ResidualsToChannelsFirst(for_openvino=True),
    MergeTransposes(),
    WriteOutLayerNorm(channels_first=True),
    *_FOLDED,
    StripesToGroups(),
    LinearToPointwiseConv(),  # the layers are convolutions: transposes behind activations meet those before
    MergeTransposes(),
    *_LAST,
)
"""Standard operators only, for OpenVINO to run in eight bits: splits stay whole and norms are written out, as in
float32, and every linear layer on a map is a convolution."""


def plugin_form(lowering: Mapping[str, LoweringForm]) -> tuple[Pass, ...]:
    """Mixer ops as plugin nodes, for TensorRT; splits and linear layers stay whole, as its own fusions want them.

    Args:
        lowering: those that are to be written in standard operators instead; the others are plugins.
    """
    portable = frozenset(name for name, form in lowering.items() if form == "portable")
    filters: dict[LoweringForm, Pass] = {"portable": GlobalFilterToMatmul(), "native": GlobalFilterToDft()}
    written = tuple(each for form, each in filters.items() if lowering.get("GlobalFilter") == form)
    if portable - {"GlobalFilter"}:
        written += (ExpandMixerOps(portable),)
    return (
        *_FIRST,
        FuseChannelLayerNorm(),
        FoldScales(),
        *written,
        MergeTransposes(),
        AttachPlugin(),
        *_LAST,
    )


PLUGIN = plugin_form({})

FORMS: dict[str, tuple[Pass, ...]] = {
    "portable": PORTABLE,
    "int8": INT8,
    "openvino": OPENVINO,
    "openvino_int8": OPENVINO_INT8,
    "plugin": PLUGIN,
}
