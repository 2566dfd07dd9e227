# SPDX-License-Identifier: Apache-2.0
"""Install a real Triton Inference Server that runs on a CPU, for the tests.

The wheel of PyTriton carries the server with its Python backend, its ensembles and its response cache, and no other
backend: no ONNX Runtime and no TensorRT. Models in Python get packages of their own here, since that server misreads
the arrays of NumPy 2.

    python tests/install_tritonserver.py

makes FOLDER/bin/tritonserver, which takes the arguments of the real one and needs nothing from the environment. A
server that cannot be installed leaves what was there, and the command ends with code 1; for a Python after
NEWEST_PYTHON there is none, and it ends with code 0.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

FOLDER = Path(sys.prefix) / "tritonserver"
"""In the virtual environment, whose Python runs the models."""

TRITONSERVER = FOLDER / "bin" / "tritonserver"

WHEEL = "nvidia-pytriton==0.7.0"
"""Triton Inference Server 2.51, of the container 24.10."""

NUMPY = "numpy==1.26.4"
NEWEST_PYTHON = (3, 12)
"""The last that there is a wheel of that NumPy for."""

PACKAGES = ("pillow", "onnxruntime", "flatbuffers", "packaging", "protobuf")
"""What models in Python may import besides NumPy, in the versions of constraints.txt; the last are ONNX Runtime's."""

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
_SERVER = Path("wheel", "pytriton", "tritonserver")


class InstallationError(Exception):
    """The server cannot run here."""


def exists() -> bool:
    """Whether there is a server for this Python."""
    return sys.version_info[:2] <= NEWEST_PYTHON


def install() -> None:
    """Make FOLDER, in place of what is there.

    Raises:
        InstallationError: this Python has no stub or no shared library, pip stopped, or the server does not start.
    """
    libraries = _folder_of_libpython()
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    # Beside FOLDER, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=".tritonserver-") as scratch:
        made = Path(scratch, "tritonserver")
        _install_packages(made / "wheel", [WHEEL])
        _keep_server(made)
        venv.create(made / "python", symlinks=True)
        packages = sysconfig.get_path("purelib", "venv", {"base": made / "python"})
        _install_packages(Path(packages), [NUMPY, *map(_pinned, PACKAGES)])
        _write_launcher(made, libraries)
        _check_that_it_starts(made / "bin" / "tritonserver")
        if FOLDER.exists():
            FOLDER.rename(Path(scratch, "old"))
        made.rename(FOLDER)


def _folder_of_libpython() -> Path:
    """Where the shared library of this Python is, which the Python backend's stub is linked to."""
    name = f"libpython{sysconfig.get_python_version()}.so.1.0"
    folder, architecture = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("MULTIARCH") or ""
    for candidate in (Path(folder), Path(folder, architecture)):
        if (candidate / name).is_file():
            return candidate
    raise InstallationError(f"there is no {name} in {folder}: this Python was built without its shared library.")


def _pinned(package: str) -> str:
    """A package with the version of constraints.txt, whose NumPy is too new for the server."""
    (pin,) = re.findall(rf"^{package}==\S+$", _CONSTRAINTS.read_text("utf-8"), re.MULTILINE)
    return str(pin)


def _install_packages(folder: Path, requirements: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--only-binary=:all:", "--target", str(folder), *requirements]
    if subprocess.run(command, check=False).returncode:
        raise InstallationError(f"pip stopped at {' '.join(requirements)}.")  # and said why on stderr


def _keep_server(made: Path) -> None:
    """Reduce the installed wheel to the server and the stub of this Python, which belongs beside the backend.

    Libraries are found at their places relative to the files that need them, so that those stay as in the wheel.
    """
    wheel, server = made / "wheel", made / _SERVER
    stub = server / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    if not stub.is_file():
        raise InstallationError(f"{WHEEL} has no stub for Python {sysconfig.get_python_version()}.")
    stub.rename(server / "backends" / "python" / stub.name)
    shutil.rmtree(server / "python_backend_stubs")
    kept = {server.parent, wheel / "nvidia_pytriton.libs"}
    for path in (*wheel.iterdir(), *server.parent.iterdir()):
        if path in kept or path == server:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for library in (wheel / "nvidia_pytriton.libs").glob("libpython*"):
        library.unlink()  # 30 MB, of the stub of another Python


def _write_launcher(made: Path, libraries: Path) -> None:
    """Write bin/tritonserver, which finds its own folder, so that it may be linked to and moved with the rest."""
    launcher = made / "bin" / "tritonserver"
    launcher.parent.mkdir()
    # The stub takes the packages of the `python3` that is first on the PATH, and heeds no PYTHONPATH.
    launcher.write_text(
        f"""#!/bin/sh
folder=$(dirname "$(dirname "$(readlink -f "$0")")")
export PATH="$folder/python/bin:$PATH"
export LD_LIBRARY_PATH={shlex.quote(str(libraries))}
server="$folder/{_SERVER}"
exec "$server/bin/tritonserver" --backend-directory="$server/backends" --cache-directory="$server/caches" "$@"
""",
        encoding="utf-8",
    )
    launcher.chmod(0o755)


def _check_that_it_starts(launcher: Path) -> None:
    done = subprocess.run([launcher, "--help"], capture_output=True, text=True, timeout=60, check=False)
    if not done.stderr.startswith("Usage: tritonserver"):  # its exit code is 1 even so
        raise InstallationError(f"it does not start: {done.stderr.strip().splitlines()[-1:]}")


def main() -> int:
    if not exists():
        print(f"{WHEEL} needs {NUMPY}, which has no wheel for this Python: its tests are skipped.", file=sys.stderr)
        return 0
    try:
        install()
    except (InstallationError, subprocess.SubprocessError, OSError) as error:
        print(f"{WHEEL} was not installed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
