# SPDX-License-Identifier: Apache-2.0
"""Where exported models run: one file per target, and what is measured there."""
