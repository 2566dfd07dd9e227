# SPDX-License-Identifier: Apache-2.0
"""TensorRT: what is checked of a graph, how engines are built from it, and how they run."""
