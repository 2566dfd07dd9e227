# SPDX-License-Identifier: Apache-2.0
"""Where the time of a model goes, by module, in ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_RUNS = 8
_KERNEL = "_kernel_time"
_OTHER = "changes of layout"
"""What ONNX Runtime puts between layers of its own accord."""


def by_module(model: bytes | Path, image: NDArray[np.float32], threads: int) -> dict[str, float]:
    """Milliseconds of all nodes of each module, by PyTorch name, in one run at that batch.

    Args:
        model: a graph with its weights, whose nodes are called module/operator, or its file.
    """
    with tempfile.TemporaryDirectory(prefix="metaformer-export-") as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: image}
        for _ in range(_RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, float] = defaultdict(float)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            module, slash, _ = name.partition("/")
            found[module if slash else _OTHER] += event["dur"] / 1000 / _RUNS
    return dict(found)


def lost(low: Mapping[str, float], plain: Mapping[str, float], count: int = 5) -> tuple[tuple[str, float], ...]:
    """The modules that take most longer than in the float form, with the milliseconds, the worst first."""
    longer = {module: ms - plain.get(module, 0.0) for module, ms in low.items()}
    worst = sorted(longer, key=lambda module: -longer[module])[:count]
    return tuple((module, longer[module]) for module in worst if longer[module] > 0)
