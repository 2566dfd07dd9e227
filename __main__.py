# SPDX-License-Identifier: Apache-2.0
"""python -m metaformer_export"""

from .cli import run

run()
