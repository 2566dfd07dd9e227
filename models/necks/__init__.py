# SPDX-License-Identifier: Apache-2.0
"""Detection necks: stage maps in, pyramid levels out. One file each; a family lists the ones it takes."""
