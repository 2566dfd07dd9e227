# SPDX-License-Identifier: Apache-2.0
"""metaformer::GlobalFilter: a per-channel circular convolution, done in the frequency domain."""
