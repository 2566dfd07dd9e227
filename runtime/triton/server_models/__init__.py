# SPDX-License-Identifier: Apache-2.0
"""Models of the server's Python backend: each file is copied into a repository as model.py.

They import NumPy, Pillow, ONNX Runtime and Triton's own module alone, never this package, which a server does not have.
"""
