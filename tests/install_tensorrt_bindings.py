# SPDX-License-Identifier: Apache-2.0
"""Install TensorRT's Python bindings without TensorRT, one version beside the other, for the tests.

The bindings (`tensorrt_bindings/tensorrt.so`) are small wheels of their own and hold every class, enumeration and
signature of a version. What they link to, gigabytes that need a GPU, is put in by three small libraries made here:
every object that one of those creates answers any call with itself, so that a method can be called, checks its
arguments as always, and returns something that means nothing.

    python tests/install_tensorrt_bindings.py

makes FOLDER/VERSION/ for each wheel below: the wheel, the package `tensorrt` in front of it as NVIDIA's does, and the
libraries. A version that cannot be installed leaves what was there, and the command ends with code 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(sys.prefix) / "tensorrt"
"""In the virtual environment, whose Python the wheels are made for."""


@dataclass(frozen=True)
class Wheel:
    """Bindings of one version; the name says the CUDA that they are packed for, which they never load.

    Attributes:
        newest_python: the last that there is a wheel for, if it is not the last of all.
    """

    distribution: str
    version: str
    newest_python: tuple[int, int] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a wheel for this Python."""
        return self.newest_python is None or sys.version_info[:2] <= self.newest_python


WHEELS = (
    Wheel("tensorrt-cu12-bindings", "10.8.0.43", newest_python=(3, 12)),  # the least that pyproject.toml takes
    Wheel("tensorrt-cu13-bindings", "10.16.1.11"),  # the last of TensorRT 10
    Wheel("tensorrt-cu13-bindings", "11.4.0.106"),  # what constraints.txt pins
)

FUNCTIONS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
"""Every function that the bindings link to, by library."""

# An object of TensorRT starts with its table of virtual functions and a pointer to what implements it. One object with
# itself behind it, and a table that answers with that object, stands for all of them.
_OBJECT = """
struct object { void **functions; struct object *implementation; };
static void *functions[1024];
static struct object any = {functions, &any};
static void *answer(void) { return &any; }
__attribute__((constructor)) static void fill(void) {
    for (int i = 0; i < 1024; ++i) functions[i] = (void *)answer;
}
"""
_PACKAGE = {
    "tensorrt/__init__.py": "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n",
    "tensorrt/plugin/__init__.py": "from tensorrt_bindings.plugin import *\n",
    # The bindings load the real libraries if they find this package.
    "tensorrt_libs/__init__.py": "",
}


def install(wheel: Wheel) -> None:
    """Make FOLDER/VERSION, in place of what is there.

    Raises:
        subprocess.CalledProcessError: pip did not find the wheel, or the C compiler stopped; both say why on stderr.
        FileNotFoundError: there is no C compiler.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        made = Path(scratch, wheel.version)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--target", str(made), f"{wheel.distribution}=={wheel.version}"]
        subprocess.run(command, check=True)
        for name, text in _PACKAGE.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for library, functions in FUNCTIONS.items():
            # Beside tensorrt.so, which looks there first.
            _compile(functions, made / "tensorrt_bindings" / f"lib{library}.so.{wheel.version.split('.')[0]}")
        shutil.rmtree(FOLDER / wheel.version, ignore_errors=True)
        made.rename(FOLDER / wheel.version)


def _compile(functions: tuple[str, ...], library: Path) -> None:
    source = _OBJECT + "".join(f"void *{name}(void) {{ return &any; }}\n" for name in functions)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)


def main() -> int:
    missing = []
    for wheel in [each for each in WHEELS if each.exists]:
        try:
            install(wheel)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            missing.append(wheel.version)
            print(f"{wheel.distribution} {wheel.version} was not installed: {error}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
