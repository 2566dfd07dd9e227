# SPDX-License-Identifier: Apache-2.0
"""Real images as model input: for parity, for timing and for activation ranges."""
