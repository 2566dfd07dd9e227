# SPDX-License-Identifier: Apache-2.0
"""The models that are measured where none is named."""

from __future__ import annotations

MODELS = (
    "hornet_t",
    "hornet_t_gf",
    "focalnet_t",
    "poolformer_s12",
    "caformer_s18",
    "boat_swin_t",
    "boat_cswin_t",
    "acmix_swin_t",
    "acmix_r26",
)
"""One small model of each family, and HorNet with both kinds of filter."""

LARGE = ("hornet_l_gf", "caformer_b36", "focalnet_h_fl3", "boat_cswin_l", "boat_swin_b", "acmix_r50")
"""Large ones, up to weights beyond 2 GB."""
