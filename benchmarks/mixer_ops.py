# SPDX-License-Identifier: Apache-2.0
"""The forms of each mixer op side by side, at the sizes that the models have.

    python benchmarks/mixer_ops.py

Portable form and function body in ONNX Runtime, and eager PyTorch. Every form is held against the
float64 reference before it is timed; all are timed in turn in one process, and a ratio is of medians.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from metaformer_export.export.ops import balanced_clustering, cluster_attention, local_attention
from metaformer_export.export.ops.balanced_clustering.op import reference as clustering_reference
from metaformer_export.export.ops.cluster_attention.op import reference as attention_reference
from metaformer_export.export.ops.local_attention.op import reference as local_reference
from metaformer_export.export.ops.mixer_op import DOMAIN, MixerOp
from metaformer_export.export.passes.attach_plugin import AttachPlugin
from metaformer_export.export.passes.base import Pass, run_pass
from metaformer_export.export.passes.expand_mixer_ops import ExpandMixerOps
from metaformer_export.models.mixers import feature_space_attention as fsla
from metaformer_export.models.mixers.local_attention import local_attention as eager_local
from metaformer_export.report import versions
from metaformer_export.runtime import bench
from metaformer_export.runtime.threads import available_threads

MAX_ERROR = 1e-4
"""Largest difference from the reference; of a clustering, the largest share of tokens in another place."""
OURS = "portable"


@dataclass(frozen=True)
class Case:
    """One operator at one size."""

    op: MixerOp
    size: str
    inputs: list[np.ndarray]
    attributes: Mapping[str, Any]
    want: np.ndarray
    eager: Callable[..., torch.Tensor]

    def error(self, got: np.ndarray) -> float:
        """Against the reference."""
        if self.want.dtype == np.int64:
            return float((got != self.want).mean()) / 100  # rounding may swap a token in a hundred
        return float(np.abs(got - self.want).max())


def cases() -> list[Case]:
    """BOAT-Swin-T's and ACmix-ResNet's stages, one image."""
    random, found = np.random.RandomState(0), []
    for tokens, heads in ((3136, 3), (784, 6), (196, 12)):
        q, k, v = random.standard_normal((3, 1, heads, tokens, 32)).astype(np.float32)
        levels = fsla.levels_of(tokens)
        order = clustering_reference(q, levels)
        at, scale = f"{tokens} tokens, {heads} heads", 32**-0.5
        clustering = {"cluster_size": 49, "levels": levels}
        attention = {"cluster_size": 49, "overlap": 20, "scale": scale}
        found += [
            Case(
                balanced_clustering.OP, at, [q], clustering, order, lambda q, n=levels: fsla.balanced_clustering(q, n)
            ),
            Case(
                cluster_attention.OP,
                at,
                [q, k, v, order],
                attention,
                attention_reference(q, k, v, order, 49, 20, scale),
                lambda q, k, v, order, s=scale: fsla.cluster_attention(q, k, v, order, 49, 20, s),
            ),
        ]
    for side, channels, stride in ((56, 64, 1), (56, 128, 2), (28, 128, 1), (14, 256, 1), (7, 512, 1)):
        qkv = list(random.standard_normal((3, 1, channels, side, side)).astype(np.float32))
        scale = (channels // 4) ** -0.5
        found.append(
            Case(
                local_attention.OP,
                f"{side}x{side}, {channels} channels, stride {stride}",
                qkv,
                {"heads": 4, "window": 7, "stride": stride, "scale": scale},
                local_reference(*qkv, 4, 7, stride, scale),
                lambda q, k, v, s=stride, c=scale: eager_local(q, k, v, 4, 7, s, c),
            )
        )
    return found


def in_onnxruntime(case: Case, form: Pass) -> Callable[[], np.ndarray]:
    """The operator alone in a graph, in the form that the pass gives it."""
    values = [
        ir.val(f"input{i}", ir.DataType.from_numpy(x.dtype), ["batch", *x.shape[1:]]) for i, x in enumerate(case.inputs)
    ]
    node = ir.node(case.op.op_type, values, case.attributes, domain=DOMAIN)
    y = node.outputs[0]
    wanted = np.int64 if case.want.dtype == np.int64 else np.float32
    y.name, y.type = "output", ir.TensorType(ir.DataType.from_numpy(np.dtype(wanted)))
    y.shape = ir.Shape(["batch", *case.want.shape[1:]])
    graph = ir.Graph(values, [y], nodes=[node], opset_imports={"": 20, DOMAIN: 1}, name="op")
    model = ir.Model(graph, ir_version=10)
    run_pass(form, model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {str(value.name): x for value, x in zip(values, case.inputs, strict=True)}
    return lambda: session.run(None, feeds)[0]


@click.command()
@click.option("--seconds", type=float, default=3.0, show_default=True, help="For each case.")
def main(seconds: float) -> None:
    """Time the forms of every mixer op but GlobalFilter (benchmarks/portable.py has that)."""
    torch.set_num_threads(available_threads())
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    click.echo(f"{datetime.now(UTC).date()}, {bench.machine()}, {available_threads()} threads, {used}\n")
    click.echo("| operator | size | portable ms | function body | eager |")
    click.echo("|---|---|--:|--:|--:|")
    for case in cases():
        tensors = [torch.from_numpy(x) for x in case.inputs]
        runs: dict[str, Callable[[], Any]] = {
            OURS: in_onnxruntime(case, ExpandMixerOps()),
            "function": in_onnxruntime(case, AttachPlugin()),
            "eager": lambda case=case, tensors=tensors: case.eager(*tensors).numpy(),
        }
        wrong = {name: case.error(run()) for name, run in runs.items() if not case.error(run()) <= MAX_ERROR}
        if wrong:
            raise SystemExit(f"{case.op.op_type} at {case.size}: parity does not hold, nothing was timed: {wrong}")
        times = {name: bench.median(ms) for name, ms in bench.interleaved(runs, seconds=seconds).items()}
        ours = times[OURS]
        ratios = " | ".join(f"{times[name] / ours:.1f}x" for name in ("function", "eager"))
        click.echo(f"| {case.op.op_type} | {case.size} | {ours:.2f} | {ratios} |")


if __name__ == "__main__":
    sys.exit(main())
