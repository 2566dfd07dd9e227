# SPDX-License-Identifier: Apache-2.0
"""The images as far as a machine without Docker goes: their steps by rule, those of one carried out."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import install_tritonserver
import pytest
from clean_root import NoCleanRootError, debootstrap, make_root
from dockerfile import Stage, context, ignore_lines, ignored, parse, substitute
from programs import SEARCHED, program

from metaformer_export.runtime.triton.containers import IMAGE, RELEASES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FILE = parse(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
IGNORED = ignore_lines(ROOT)
EACH_STAGE = pytest.mark.parametrize("stage", FILE.stages.values(), ids=lambda stage: stage.name)


def base_of(stage: Stage) -> tuple[str, str]:
    """Repository and tag of the image that a stage starts from."""
    name, tag = substitute(stage.base, FILE.arguments).rsplit(":", 1)
    return name, tag


def requirement(text: str) -> str:
    return re.split(r"[<>=\[;]", text)[0]


def hadolint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("hadolint"), "Dockerfile"], cwd=folder, capture_output=True, text=True)


def test_hadolint_finds_nothing() -> None:
    found = hadolint(ROOT)
    assert (found.returncode, found.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    spoilt = TEXT.replace("USER 1000:1000", "USER root").replace("python:${PYTHON}", "python")
    (tmp_path / "Dockerfile").write_text(spoilt, encoding="utf-8")
    found = hadolint(tmp_path)
    assert found.returncode == 1
    assert {"DL3002", "DL3006"} <= set(re.findall(r"DL\d+", found.stdout))


def test_the_stages_are_there_and_the_default_is_the_export() -> None:
    assert list(FILE.stages) == ["test", "serve", "export"]


@EACH_STAGE
def test_a_base_is_one_tag_that_a_build_argument_changes(stage: Stage) -> None:
    name, tag = base_of(stage)
    assert name == {"test": "python", "serve": IMAGE, "export": "nvcr.io/nvidia/tensorrt"}[stage.name]
    assert re.search(r"\d+\.\d+", tag)
    (argument,) = re.findall(r"\$\{(\w+)\}", stage.base)
    assert FILE.arguments[argument] in tag
    labels = stage.all("LABEL")[0].value.replace("docker.io/library/", "")
    assert f'base.name="{stage.base}"' in labels
    assert all(f'org.opencontainers.image.{key}="' in labels for key in ("title", "description", "licenses"))


def test_the_server_has_the_tensorrt_that_builds_the_engines() -> None:
    tags = {base_of(FILE.stages[name])[1] for name in ("serve", "export")}
    assert len(tags) == 1
    assert tags <= {release.tag for release in RELEASES}


def test_the_tests_run_in_a_python_that_the_package_takes() -> None:
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    found = base_of(FILE.stages["test"])[1].split("-")[0]
    assert tuple(map(int, found.split(".")))[:2] >= tuple(map(int, least.split(".")))


@EACH_STAGE
def test_nothing_runs_as_root(stage: Stage) -> None:
    assert [each.value for each in stage.all("USER")] == ["1000:1000"]
    names = [each.name for each in stage.instructions]
    assert "CMD" in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]


@EACH_STAGE
def test_what_is_copied_is_there_and_not_ignored(stage: Stage) -> None:
    sources = [source for each in stage.all("COPY") for source in each.value.split()[:-1]]
    flags = " ".join(flag for each in stage.all("RUN") for flag in each.flags)
    sources += re.findall(r"type=bind,source=([^ ,]+)", flags)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source == "." or not ignored(source, IGNORED), source


def test_pip_takes_pinned_versions_and_keeps_its_downloads_out_of_the_layers() -> None:
    installing = [each for stage in FILE.stages.values() for each in stage.all("RUN") if "pip install" in each.value]
    assert len(installing) == 5
    assert all("--constraint" in each.value for each in installing)
    assert all("mount=type=cache,target=/root/.cache/pip" in each.flags for each in installing)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (400, 1)], ids=["ready", "still loading"])
def test_the_health_check_asks_the_server_whether_it_is_ready(status: int, code: int) -> None:
    (check,) = FILE.stages["serve"].all("HEALTHCHECK")
    script = json.loads(check.value.split(" CMD ")[1])[2]

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        answering = Thread(target=server.handle_request)
        answering.start()
        asked = [sys.executable, "-c", script.replace(":8000/", f":{server.server_port}/")]
        assert subprocess.run(asked, capture_output=True, timeout=30).returncode == code
        answering.join()


def test_the_server_has_what_its_models_import() -> None:
    (install,) = (each.value for each in FILE.stages["serve"].all("RUN"))
    installed = set(install.split("--constraint /tmp/server.txt")[1].split("&&")[0].split())
    imported = set()
    for path in (*(ROOT / "runtime/triton/server_models").glob("*.py"), ROOT / "calibration/preprocessing.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    theirs = imported - set(sys.stdlib_module_names) - {"triton_python_backend_utils", "preprocessing"}
    packages = {"numpy": "numpy", "PIL": "pillow", "onnxruntime": "onnxruntime-gpu"}
    assert {packages[name] for name in theirs} == installed


def test_the_server_has_the_numpy_that_the_tests_serve_with() -> None:
    assert f"ARG {install_tritonserver.NUMPY.replace('numpy==', 'NUMPY=')}\n" in TEXT


def test_the_export_takes_all_that_engines_need_but_tensorrt_itself() -> None:
    taken = re.search(
        r'"\.\[([^\]]+)\]"((?: +[\w-]+)*)', " ".join(each.value for each in FILE.stages["export"].all("RUN"))
    )
    assert taken is not None
    extras = taken[1].split(",")
    assert set(extras) == {"gpu", "openvino", "triton-client", "test"}
    installed = {requirement(each) for name in extras for each in EXTRAS[name]} | set(taken[2].split())
    assert {requirement(each) for each in EXTRAS["tensorrt"]} - installed == {"tensorrt-cu13"}


@pytest.mark.parametrize(
    "path",
    [
        "constraints.txt",
        "pyproject.toml",
        "py.typed",
        "cli.py",
        "models/hornet.py",
        "runtime/triton/server_models/preprocess.py",
        "calibration/photographs/cat.jpg",
        "tests/golden/timm/caformer_s18.npz",
        "docker/entrypoint.sh",
    ],
)
def test_the_context_has(path: str) -> None:
    assert (ROOT / path).is_file()
    assert not ignored(path, IGNORED)


@pytest.mark.parametrize(
    "path",
    [
        ".git/HEAD",
        ".venv/bin/python",
        ".env",
        ".hypothesis/unicode_data/x",
        "build/lib/cli.py",
        "dist/a.whl",
        "metaformer_export.egg-info/PKG-INFO",
        "models/__pycache__/hornet.cpython-311.pyc",
        "tests/golden/__pycache__/golden.pyc",
        "benchmarks/gpu.py",
        "docs/models.md",
        "compose.yaml",
        "hornet.pth",
    ],
)
def test_the_context_has_not(path: str) -> None:
    assert ignored(path, IGNORED)


def test_the_context_has_the_whole_package_and_is_small() -> None:
    files = set(context(ROOT))
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {name: ROOT.joinpath(*name.split(".")[1:]) for name in setuptools["packages"]}
    wanted = [folder / "__init__.py" for folder in folders.values()]
    wanted += [
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in folders[package].glob(pattern)
    ]
    wanted += [ROOT / name for name in (PROJECT["project"]["readme"], *PROJECT["project"]["license-files"])]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= files
    assert 200 < len(files) < 2000
    assert sum((ROOT / path).stat().st_size for path in files) < 20e6


def test_ignoring_follows_the_last_line_that_matches() -> None:
    lines = ["*", "!kept", "!*.py", "kept/a?.txt", "**/cache", "!kept/sub/cache"]
    paths = ["a", "a.py", "sub/a.py", "kept/b", "kept/ab.txt", "kept/x/ab.txt", "kept/x/cache/y", "kept/sub/cache/y"]
    assert [ignored(path, lines) for path in paths] == [True, False, True, False, True, False, True, False]


def test_the_parity_tests_are_there() -> None:
    named = re.findall(r"tests/\S+\.py", (ROOT / "tests" / "parity.sh").read_text(encoding="utf-8"))
    assert {"tests/models/test_goldens.py", "tests/test_engine_parity.py"} <= set(named)
    assert all((ROOT / path).is_file() for path in named)
    assert "RUN sh tests/parity.sh\n" in TEXT


@pytest.mark.parametrize("path", ["docker/entrypoint.sh", "tests/parity.sh"])
def test_a_script_is_plain_shell(path: str) -> None:
    assert subprocess.run(["sh", "-n", ROOT / path]).returncode == 0
    assert (ROOT / path).read_text("utf-8").startswith("#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")


def test_the_image_runs_the_tests_or_the_command_line() -> None:
    (entry,) = FILE.stages["export"].all("ENTRYPOINT")
    assert json.loads(entry.value) == ["/opt/metaformer-export/docker/entrypoint.sh"]
    script = ROOT / "docker" / "entrypoint.sh"
    assert os.access(script, os.X_OK)
    said = subprocess.check_output([script, "--version"], env={"PATH": SEARCHED}, text=True)
    assert said.startswith("metaformer-export, version ")
    traced = subprocess.run(["sh", "-x", script, "test"], env={"PATH": SEARCHED}, capture_output=True, text=True)
    assert traced.stderr.splitlines()[2] == "+ cd /opt/metaformer-export"


@pytest.mark.slow
def test_the_test_stage_holds_in_a_clean_root(tmp_path: Path) -> None:
    try:
        bootstrap = debootstrap(tmp_path / "debootstrap")
    except NoCleanRootError as error:
        pytest.skip(str(error))
    stage = FILE.stages["test"]
    version, _, suite = base_of(stage)[1].split("-")
    root = make_root(tmp_path / "root", suite, bootstrap, FILE.arguments)
    try:
        python = root.run("python3 -c 'import sys; print(sys.version_info[:2])'").strip()
        assert python == str(tuple(map(int, version.split(".")[:2])))
        said = root.carry_out(stage, ROOT)
        assert root.run("id --user").strip() == "1000"
    finally:
        shutil.rmtree(root.path)
    models, engines = re.findall(r"^(.*) in [\d.]+s.*$", said, re.MULTILINE)[-2:]
    assert int(re.findall(r"(\d+) passed", models)[0]) >= 160
    assert "failed" not in models
    assert re.fullmatch(r"16 skipped", engines)
