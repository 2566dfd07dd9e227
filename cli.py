# SPDX-License-Identifier: Apache-2.0
"""The command line: options, progress and exit codes. What is done is in pipeline.py."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from . import cli_engine
from .cli_build import build_command
from .cli_calibrate import calibrate_command
from .cli_classify import classify_command
from .cli_eval import eval_command
from .cli_inspect import inspect_command
from .cli_lint import lint_command
from .cli_options import calibration_options, chosen_calibration
from .cli_parity import parity_command
from .cli_plugins import plugins_command
from .cli_serve import serve_command
from .cli_triton import triton_command
from .console import ConsoleProgress
from .errors import InputError, LoweringError, MetaformerExportError
from .options import DEFAULT_BATCH, BatchRange, ExportOptions, parse_resolution, parse_size
from .version import __version__

if TYPE_CHECKING:
    from .artifacts import ExportResult, Precision

_INTERRUPTED = 130
_INTERRUPTION = "interrupted; nothing half-written is left."
_SHOWN_FAILURES = 3
_DEFECT = LoweringError.exit_code
_LOW: tuple[Precision, ...] = ("fp16", "bf16", "int8")
_SECTIONS = {
    "Model": ("model", "list_models", "checkpoint", "num_classes", "features", "neck", "sizes", "resolution", "seed"),
    "Precision and form": ("fp16", "bf16", "int8", "io", "opset", "batch", "target"),
    "Calibration (--int8)": (
        "calib_data",
        "calib_size",
        "calib_method",
        "batch_size",
        "calibration",
        "no_equalize",
        "plan",
        "force",
    ),
    "Engine (--target tensorrt, or auto)": cli_engine.NAMES,
    "Proof and output": ("images", "triton", "output", "as_json"),
}


class _Sectioned(click.Group):
    """Help with the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {str(parameter.name): parameter for parameter in self.get_params(ctx)}
        sections = {title: [left.pop(name) for name in names] for title, names in _SECTIONS.items()}
        sections["General"] = list(left.values())
        for title, parameters in sections.items():
            records = [parameter.get_help_record(ctx) for parameter in parameters]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])
        self.format_commands(ctx, formatter)


@click.group(
    cls=_Sectioned,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option("--model", metavar="NAME", help="Model to export, for instance hornet_t. [default: the checkpoint's]")
@click.option("--list", "list_models", is_flag=True, help="List the models and stop.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights: .pth, .pt, .bin or .safetensors, under the authors', timm's or Hugging Face's names. "
    "Without: seeded random weights.",
)
@click.option("--num-classes", type=int, metavar="N", help="Classes of the head. [default: the checkpoint's, or 1000]")
@click.option(
    "--features",
    is_flag=True,
    help="Export the stage maps (NCHW) instead of logits, for dense prediction: HorNet's and PoolFormer's each "
    "through a norm, others' as they leave the stages.",
)
@click.option(
    "--neck", default="", metavar="NAME", help="Detection neck on the stage maps: horfpn_7x7 or horfpn_gf (HorNet)."
)
@click.option(
    "--set",
    "sizes",
    multiple=True,
    metavar="NAME=N,N,...",
    help="Another width, dims, depths or heads than the model's, for a network of your own; may be repeated: "
    "--set width=16 --set depths=1,1,2,1.",
)
@click.option("--resolution", metavar="N|HxW", help="Input size in pixels. [default: the model's]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of random weights.")
@click.option("--fp16", is_flag=True, help="Cast to float16; what needs float32 stays, with the reason.")
@click.option("--bf16", is_flag=True, help="Cast to bfloat16.")
@click.option(
    "--int8",
    is_flag=True,
    help="Quantise to 8 bits with ranges from --calib-data: model.onnx for the CPU, model.tensorrt.onnx for TensorRT. "
    "Exit code 1 if it is not faster here than the float model, or parity fails.",
)
@calibration_options
@cli_engine.engine_options
@cli_engine.lowering_option
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ranges of an earlier run, its calibration.json, instead of images.",
)
@click.option(
    "--precision-plan",
    "plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Modules to keep in high precision, as calibrate --max-drop writes them; also with --fp16.",
)
@click.option("--force", is_flag=True, help="Exit with 0 though INT8 is slower here, or parity fails.")
@click.option(
    "--io", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Type of inputs and outputs."
)
@click.option("--opset", type=int, metavar="N", help="ONNX opset, 18 to 23. [default: 20; 22 with --bf16]")
@click.option(
    "--batch",
    metavar="N|MIN:OPT:MAX",
    help="Batch sizes the model is for; MIN and OPT are timed. The file takes any, an engine these; with a single one, "
    "1 or N:N:N, OpenVINO compiles for it. "
    "[default: 1:1:32; 1:8:32 with an engine]",
)
@click.option(
    "--target",
    type=click.Choice(["auto", "onnx", "openvino", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Runtime to prove and time the file in: ONNX Runtime alone, OpenVINO as well, a TensorRT engine, or auto: "
    "every one that is here, also OpenVINO's own BF16 without --fp16 and --bf16, and say which is fastest.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images to prove and time with. [default: the photographs that come with the package]",
)
@click.option(
    "--triton/--no-triton",
    default=True,
    show_default=True,
    help="Write a Triton model repository, DIR/triton, where parity holds.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write. [default: build/NAME-PRECISION]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout, all else on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Say what each pass did and left alone.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="metaformer-export")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> int:
    """Export a MetaFormer-family vision model to ONNX, prove that it computes
    what eager PyTorch computes, and time it.

    \b
    Examples:
      metaformer-export --model hornet_t --fp16
      metaformer-export --checkpoint hornet_small_gf.pth --fp16
      metaformer-export inspect hornet_small_gf.pth
      metaformer-export --model hornet_t --features --resolution 256x320

    Exit codes: 0 done and parity holds; 1 parity or the engine failed, or INT8 is slower than
    the float model (the files are kept, marked failed); 2 wrong input, nothing written; 3 something needed is missing;
    70 a defect of this tool; 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        _refuse_export_options(context, given)
        return 0
    if given["verbose"]:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
        logging.getLogger(__package__).setLevel(logging.DEBUG)
    if given["list_models"]:
        return _list(given["as_json"])
    options = _options({**given, "arguments": context.obj})
    progress = ConsoleProgress()
    with progress.stage("start"):
        from .pipeline import run_export
    result = run_export(options, progress)
    _print_summary(result, given["as_json"])
    return 0 if result.passed or options.force else 1


command.add_command(inspect_command)
command.add_command(eval_command)
command.add_command(calibrate_command)
command.add_command(build_command)
command.add_command(parity_command)
command.add_command(plugins_command)
command.add_command(triton_command)
command.add_command(lint_command)
command.add_command(serve_command)
command.add_command(classify_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Every expected error is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = command.main(args=given, prog_name="metaformer-export", standalone_mode=False, obj=tuple(given))
        return int(code or 0)
    except click.ClickException as error:
        return _fail(f"{error.format_message().rstrip('.')}. See metaformer-export --help.", 2, debug)
    except MetaformerExportError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        return _fail(_INTERRUPTION, _INTERRUPTED, debug)
    except Exception as error:
        if _was_interrupted(error):
            return _fail(_INTERRUPTION, _INTERRUPTED, debug)
        text = (str(error) or "no message").splitlines()[0]
        return _fail(f"internal error, {type(error).__name__}: {text} (--debug shows where)", _DEFECT, debug)


def run() -> NoReturn:
    """The command as a process: what `main` does, and out at once.

    All files are written and closed by then; Python would take two seconds more to take torch and the runtimes apart.
    """
    code = main()
    with contextlib.suppress(OSError):  # nobody listens any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: torch wraps one that arrives while it loads or exports."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"metaformer-export: error: {' '.join(message.split())}", err=True)
    return code


def _refuse_export_options(context: click.Context, given: dict[str, Any]) -> None:
    """InputError for an option of the export before the name of another command."""
    typed = {name for name in given if context.get_parameter_source(name) is ParameterSource.COMMANDLINE} - {"debug"}
    wrong = [parameter.opts[-1] for parameter in context.command.params if parameter.name in typed]
    if wrong:
        raise InputError(f"{wrong[0]} does not go with {context.invoked_subcommand}, whose own options come after it.")


def _options(given: dict[str, Any]) -> ExportOptions:
    if not given["model"] and given["checkpoint"] is None:
        raise InputError(
            "give a model with --model NAME, or weights with --checkpoint FILE; --list shows the models, "
            "--help explains the rest."
        )
    asked: list[Precision] = [name for name in _LOW if given[name]]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in asked)} exclude each other.")
    return ExportOptions(
        model=given["model"] or None,
        checkpoint=given["checkpoint"],
        precision=asked[0] if asked else "fp32",
        target=given["target"],
        resolution=None if given["resolution"] is None else parse_resolution(given["resolution"]),
        batch=DEFAULT_BATCH if given["batch"] is None else BatchRange.parse(given["batch"]),
        num_classes=given["num_classes"],
        features=given["features"],
        neck=given["neck"],
        sizes=dict(parse_size(text) for text in given["sizes"]),
        output=given["output"],
        images=given["images"],
        opset=given["opset"],
        io=given["io"],
        seed=given["seed"],
        calibration=chosen_calibration(given),
        plan=given["plan"],
        force=given["force"],
        engine=cli_engine.chosen_engine(given),
        lowering=cli_engine.chosen_lowering(given),
        plugins=given["plugins"],
        triton=given["triton"],
        command=("metaformer-export", *given["arguments"]),
    )


def _list(as_json: bool) -> int:
    from .models import registry

    if as_json:
        click.echo(json.dumps([registry.describe(*each) for each in registry.variants()], indent=2))
        return 0
    click.echo(f"{'name':24s}{'short name':24s}{'parameters':>11s}{'size':>6s}  can do")
    for family, variant in registry.variants():
        can = [variant.size_rule.describe(), *variant.mixer_ops]
        if family.features and not variant.isotropic:
            can.insert(1, "--features, --neck" if family.necks else "--features")
        millions = f"{variant.parameters / 1e6:.1f} M"
        click.echo(
            f"{variant.name:24s}{variant.short_name:24s}{millions:>11s}{variant.image_size:6d}  {', '.join(can)}"
        )
    return 0


def _print_summary(result: ExportResult, as_json: bool) -> None:
    from . import remarks
    from .report import summary, to_json

    if as_json:
        click.echo(to_json(summary(result)), nl=False)
        return
    written = result.manifest.content["outputs"]
    size = sum(written[name]["bytes"] for name in ("model.onnx", "model.onnx.data") if name in written) / 1e6
    verdict = "parity holds" if result.parity.passed else "PARITY FAILED"
    click.echo(f"{result.folder}: {verdict}, model.onnx {size:.1f} MB, {remarks.speeds(result)}")
    if result.bench.choice is not None and len({each.runtime for each in result.bench.candidates}) > 1:
        click.echo(remarks.choice_line(result.bench.choice, bool(result.bench.unstable)))
    if result.bench.gain is not None:
        click.echo(remarks.gain_line(result.bench.gain))
        if not result.bench.gain.pays:
            click.echo("metaformer-export: INT8 is not faster here; --force takes it all the same", err=True)
    for failure in result.engine_failures[:_SHOWN_FAILURES]:
        click.echo(f"metaformer-export: the engine failed: {failure}", err=True)
    shown = result.parity.failures[:_SHOWN_FAILURES]
    for failure in shown:
        click.echo(f"metaformer-export: parity failed: {failure}", err=True)
    if more := len(result.parity.failures) - len(shown):
        click.echo(f"metaformer-export: parity failed: {more} more in {result.folder / 'parity.json'}", err=True)
