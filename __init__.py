# SPDX-License-Identifier: Apache-2.0
"""metaformer-export: MetaFormer-family vision models from a checkpoint to a proved ONNX file.

Importing this package costs no torch; the names below load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .models import create_model
    from .options import ExportOptions
    from .pipeline import run_export as export_model
    from .runtime.engine import load_engine
    from .runtime.parity import compare

__all__ = ["ExportOptions", "__version__", "compare", "create_model", "export_model", "load_engine"]

_LAZY = {
    "create_model": (".models", "create_model"),
    "ExportOptions": (".options", "ExportOptions"),
    # Not "export": that is the subpackage, and which of the two a caller got would depend on import order.
    "export_model": (".pipeline", "run_export"),
    "load_engine": (".runtime.engine", "load_engine"),
    "compare": (".runtime.parity", "compare"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module, __name__), attribute)
