# SPDX-License-Identifier: Apache-2.0
"""The command line with the small models known, for tests that need a process of their own.

python run_small.py [--limit-file-size BYTES] ARGUMENTS...
"""

import resource
import sys

import support

from metaformer_export import timing
from metaformer_export.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--limit-file-size"]:
        limit = int(arguments[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        arguments = arguments[2:]
    support.install_small_family()
    timing._TOGETHER_SECONDS = 1.0  # enough to be killed in
    sys.exit(main(arguments))
