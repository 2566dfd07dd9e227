# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch module to ONNX graphs: trace, lower by passes, convert to a precision."""
