# SPDX-License-Identifier: Apache-2.0
"""Our code against TensorRT's real Python bindings, in every version that is supported, without TensorRT or a GPU."""
