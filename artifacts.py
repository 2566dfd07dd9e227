# SPDX-License-Identifier: Apache-2.0
"""What the stages hand over: frozen values, so that no stage can reach into another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from .models.family import Preprocessing
    from .runtime.tensorrt.engine import Engine

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
"""What is computed in: a float32 file multiplies in TF32 in an engine that may."""
Target = Literal["auto", "onnx", "openvino", "tensorrt"]
LoweringForm = Literal["portable", "plugin", "native"]
"""How a mixer op reaches TensorRT: in standard operators, as a plugin, or in operators that ONNX has for it."""
Method = Literal["minmax", "entropy", "percentile", "mse"]
"""How the range of a quantised tensor is chosen."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model this is, and what it takes and gives.

    Attributes:
        image_size: (height, width) in pixels.
        num_classes: 0 for a model that returns stage maps.
        weights: where they come from: a checkpoint's file name, or the seed they were drawn from.
        checkpoint_sha256: None for seeded random weights.
        outputs: names of the graph's outputs, in order.
        neck: the detection neck after the stage maps, "" for none.
        sizes: what is not as in the authors' variant, by the names of models.sizes; {} for theirs.
    """

    name: str
    short_name: str
    family: str
    image_size: tuple[int, int]
    in_chans: int
    num_classes: int
    features: bool
    parameters: int
    weights: str
    checkpoint_sha256: str | None
    preprocessing: Preprocessing
    outputs: tuple[str, ...]
    neck: str = ""
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Traced:
    """The model as ONNX, mixer ops as single nodes, nothing rewritten yet."""

    spec: ModelSpec
    model: ir.Model
    opset: int


@dataclass(frozen=True)
class PassRecord:
    """One pass as it ran: how many places it rewrote, and the graph's node count after it."""

    name: str
    rewrites: int
    nodes: int


@dataclass(frozen=True)
class Lowered:
    """A graph in the form one target wants, in float32."""

    spec: ModelSpec
    model: ir.Model
    form: str
    passes: tuple[PassRecord, ...] = ()


@dataclass(frozen=True)
class KeptLayer:
    """Nodes of one module that stay in higher precision than asked for, in a low-precision graph, and why."""

    module: str
    ops: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Converted:
    """A lowered graph in its final precision.

    Attributes:
        layers: nodes per precision, by module group (for instance "stages.2": {"fp16": 93}).
    """

    spec: ModelSpec
    model: ir.Model
    form: str
    precision: Precision
    kept: tuple[KeptLayer, ...] = ()
    layers: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class OutOfRange:
    """A layer whose float32 values do not fit float16 on the sample batch."""

    module: str
    op: str
    value: str
    max_abs: float


@dataclass(frozen=True)
class OutputParity:
    """One output of the exported model against eager PyTorch, worst over the batches.

    Attributes:
        max_abs: largest absolute difference, in units of the output.
        max_rel: largest absolute difference over the reference's standard deviation.
        rms_rel: root mean square difference over the reference's standard deviation.
        cosine: cosine similarity of the flattened outputs.
        top1_agreement: share of images with the same first class (1.0 for feature maps: none is asked).
        top5_agreement: mean share of the first five classes that both have.
    """

    name: str
    max_abs: float
    max_rel: float
    rms_rel: float
    cosine: float
    top1_agreement: float
    top5_agreement: float


@dataclass(frozen=True)
class NodeAgreement:
    """One clustering: share of tokens that are in the cluster where eager has them, over images.

    Attributes:
        min, mean: of the export as it runs, after its own clusterings before this one, in the first of the ways.
        alone: mean share of this clustering by itself, after eager's before it.
        lent: likewise, of the tokens that a cluster lends to the other of its pair, the share that it lends here.
    """

    module: str
    min: float
    mean: float
    alone: float
    lent: float


@dataclass(frozen=True)
class ClusterAgreement:
    """All clusterings of a model."""

    min: float
    mean: float
    nodes: tuple[NodeAgreement, ...]


@dataclass(frozen=True)
class ParityReport:
    """Whether the exported model computes what eager PyTorch computes, and by what margin.

    Attributes:
        outputs: of the exported model as it runs.
        cluster_agreement: None for a model that clusters nothing. Where it does, `thresholds` are for
            `same_clusters`, the outputs when the exported model is given eager's clusters: their
            error is arithmetic. `changed_clusters` is what clusters of its own add to each output,
            as an rms over the reference's standard deviation, in the first of the ways to run it.
        between: rms of the differences between each two ways to run it, likewise, worst of outputs and batches; not
            of outputs that are too large to keep.
    """

    passed: bool
    precision: Arithmetic
    images: int
    image_source: str
    batches: tuple[int, ...]
    outputs: tuple[OutputParity, ...]
    methods: tuple[str, ...]
    thresholds: dict[str, float]
    failures: tuple[str, ...] = ()
    out_of_range: tuple[OutOfRange, ...] = ()
    cluster_agreement: ClusterAgreement | None = None
    same_clusters: tuple[OutputParity, ...] = ()
    changed_clusters: dict[str, float] = field(default_factory=dict)
    between: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One way to run the model on this machine, and whether it may be chosen.

    Attributes:
        file: of the output folder; "" for the float32 form beside a 16-bit file, which is only compared with.
        settings: what the runtime has to be told to run it so.
        passed: whether it runs here and parity holds; `failures` says why not.
        rms_rel, cosine: worst over outputs, images and batches (with eager's clusters, where a model clusters);
            None if it did not run.
        compiled_for: the one batch size that the runtime compiled the file for; None for any.
    """

    runtime: str
    precision: Precision
    file: str
    settings: dict[str, str | int]
    passed: bool
    rms_rel: float | None = None
    cosine: float | None = None
    failures: tuple[str, ...] = ()
    compiled_for: int | None = None


@dataclass(frozen=True)
class Choice:
    """The fastest candidate that passed: what to run, how, and what it gave at the usual batch size."""

    runtime: str
    precision: Precision
    file: str
    settings: dict[str, str | int]
    batch: int
    median_ms: float
    speedup_over_eager: float
    compiled_for: int | None = None


@dataclass(frozen=True)
class BenchRow:
    """Latency of one runtime at one precision and batch, in milliseconds per batch.

    Attributes:
        file: of the output folder; "" for eager and for the float32 form beside a 16-bit file.
        gpu_ms: median by CUDA events, without copies from or to the host; None for what does not run on a GPU.
    """

    runtime: str
    precision: str
    batch: int
    median_ms: float
    p90_ms: float
    speedup_over_eager: float
    file: str = ""
    passed: bool = True
    gpu_ms: float | None = None


@dataclass(frozen=True)
class Gain:
    """Whether the quantised model is worth having here: its fastest way to run against that of the float model.

    Attributes:
        ratio: milliseconds of the float model over those of the quantised one; above 1 it is faster.
        costliest: where it is not, the modules whose layers lose most, with the milliseconds, the worst first.
    """

    runtime: str
    median_ms: float
    float_runtime: str
    float_median_ms: float
    batch: int
    ratio: float
    costliest: tuple[tuple[str, float], ...] = ()

    @property
    def pays(self) -> bool:
        """Whether it is faster."""
        return self.ratio > 1


@dataclass(frozen=True)
class BenchReport:
    """Latencies measured side by side in one run.

    Attributes:
        iterations: timed runs of each, the fewest over the batch sizes.
        unstable: why the figures should not be relied on; "" if nothing speaks against them.
        speedup_over_eager: of the delivered model.onnx in its precision at the first batch size, in ONNX Runtime
            if that was timed, else in OpenVINO; None where neither could run it.
        candidates: all ways to run the model that the target has, those that cannot be taken included.
        choice: None if none of them passed, or the export's parity failed.
        gain: of a quantised model; None for others, and where it could not be timed beside its float form.
    """

    machine: str
    threads: int
    iterations: int
    results: tuple[BenchRow, ...]
    speedup_over_eager: float | None
    unstable: str = ""
    candidates: tuple[Candidate, ...] = ()
    choice: Choice | None = None
    gain: Gain | None = None


@dataclass(frozen=True)
class Manifest:
    """What was made, from what, by what, and what holds of it; manifest.json."""

    content: dict[str, Any]


@dataclass(frozen=True)
class ExportResult:
    """What an export left behind; `folder` holds model.onnx, the reports and manifest.json.

    Attributes:
        engine_parity: of the engine, with ONNX Runtime beside it where that can run the file.
        no_engine: why there is none, where one was asked for.
    """

    folder: Path
    spec: ModelSpec
    precision: Precision
    parity: ParityReport
    bench: BenchReport
    manifest: Manifest
    notes: tuple[str, ...]
    engine: Engine | None = None
    engine_parity: ParityReport | None = None
    no_engine: str = ""

    @property
    def passed(self) -> bool:
        """Whether parity holds, an engine is what was asked for and, for a quantised model, it is faster than the
        float one.
        """
        return self._passed_but_for_an_engine and not self.engine_failures

    @property
    def lacks_only_an_engine(self) -> bool:
        """Whether all else holds, and there is no engine, or one in another precision than its file's: building one
        again may mend that. One that computes something else than eager is another matter.
        """
        unequal = self.engine is not None and self.engine_failures != self.engine.failures
        return self._passed_but_for_an_engine and bool(self.engine_failures) and not unequal

    @property
    def _passed_but_for_an_engine(self) -> bool:
        return self.parity.passed and (self.bench.gain is None or self.bench.gain.pays)

    @property
    def engine_failures(self) -> tuple[str, ...]:
        """Why there is no engine, or it is not what was asked for or does not compute what eager computes."""
        if self.engine is None:
            return (self.no_engine,) if self.no_engine else ()
        tried = [each for each in self.bench.candidates if each.file == self.engine.path.name]
        return (*self.engine.failures, *(text for each in tried if not each.passed for text in each.failures))
