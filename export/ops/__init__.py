# SPDX-License-Identifier: Apache-2.0
"""The metaformer ONNX domain: token mixers that standard ONNX cannot say in one node, a folder each."""
