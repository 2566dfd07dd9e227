# SPDX-License-Identifier: Apache-2.0
"""Served by a Triton Inference Server: the model repository, the server, the client, what Kubernetes needs."""
