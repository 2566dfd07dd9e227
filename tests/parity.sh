#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Proves that the models compute what their authors' code computes, and their exports what the models compute: on the
# CPU in minutes, then engines where TensorRT and a GPU are. Run in the root of the repository; another Python than the
# one on the path may be given.
set -eu
python=${1:-python}
CUDA_VISIBLE_DEVICES="" "$python" -m pytest -m "not slow" \
    tests/models/test_goldens.py \
    tests/models/test_name_maps.py \
    tests/runtime/test_parity.py \
    tests/test_every_family.py
"$python" -m pytest -rs tests/test_engine_parity.py
