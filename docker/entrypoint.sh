#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the image runs: "test" is the parity tests, all else the command line of metaformer-export.
set -eu
if [ "${1:-}" = test ]; then
    cd /opt/metaformer-export
    exec sh tests/parity.sh
fi
exec metaformer-export "$@"
