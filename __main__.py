# SPDX-License-Identifier: Apache-2.0
"""python -m metaformer_export"""

import sys

from .cli import main

sys.exit(main())
