# SPDX-License-Identifier: Apache-2.0
"""Graph rewrites, one file each; `catalog.py` says which run for which form, in what order."""
