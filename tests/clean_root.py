# SPDX-License-Identifier: Apache-2.0
"""A root file system with nothing but Debian's Python, in which the steps of a Dockerfile's stage are carried out.

Where no Docker runs, this is the nearest to a build: a minimal Debian made by debootstrap stands for the base image,
and every command runs with chroot as the stage's user, in its folder and with its environment alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile import Instruction, Stage, context, substitute

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
"""What the base image has of what its stage uses, beside Debian's essential packages."""

_UNDONE = {"LABEL", "CMD"}
_SETTING = re.compile(r"(?:^|:\.|\.)([a-z-]+)='(.*)'$", re.MULTILINE)
_PATH = re.compile(r"(?:file://)?(/[^\s']+)")


class NoCleanRootError(Exception):
    """This machine cannot make one."""


def debootstrap(folder: Path) -> list[str]:
    """The command of the program, which is unpacked into `folder` if it is not installed.

    Raises:
        NoCleanRootError: this is no Debian, or the user is not root.
    """
    if os.geteuid() != 0 or shutil.which("dpkg") is None or shutil.which("unshare") is None:
        raise NoCleanRootError("a root file system is made by root, on Debian")
    if (installed := shutil.which("debootstrap")) is not None:
        return [installed]
    folder.mkdir()
    fetched = subprocess.run(["apt-get", "download", "debootstrap"], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        raise NoCleanRootError(f"debootstrap cannot be had: {fetched.stderr.strip()}")
    (package,) = folder.glob("debootstrap_*.deb")
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    return ["env", f"DEBOOTSTRAP_DIR={folder}/usr/share/debootstrap", f"{folder}/usr/sbin/debootstrap"]


@dataclass
class CleanRoot:
    """A file system at `path`, and how far a stage has come in it."""

    path: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"

    def run(self, command: str) -> str:
        """A shell command's output, stderr and all; AssertionError with the end of it if the command fails."""
        local, settings = _pip_of_this_machine()
        mounts = [f"mount --bind {shlex.quote(each)} {shlex.quote(f'{self.path}{each}')}" for each in local]
        mounts += [f"mount -t proc proc {self.path}/proc", f"mount --rbind /dev {self.path}/dev"]
        variables = settings | self.arguments | self.environment
        inside = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        inside += ["sh", "-c", f"cd {shlex.quote(self.folder)} && {command}"]
        chroot = ["exec", "chroot", f"--userspec={self.user}", str(self.path), *inside]
        for each in local:
            (self.path / each.lstrip("/")).mkdir(parents=True, exist_ok=True)
        # The mounts are gone with the process.
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, shlex.join(chroot)])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        return done.stdout

    def carry_out(self, stage: Stage, source: Path) -> str:
        """All steps of a stage whose build context is the folder `source`; the output of the commands."""
        said = ""
        for each in stage.instructions:
            value = substitute(each.value, self.arguments | self.environment)
            if each.name == "RUN":
                assert all(flag.startswith("mount=type=cache") for flag in each.flags), each
                said += self.run(each.value)
            elif each.name == "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in shlex.split(value))
            elif each.name == "ARG":
                name, _, default = value.partition("=")
                self.arguments.setdefault(name, default)
            elif each.name == "WORKDIR":
                self.folder = value
                (self.path / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif each.name == "USER":
                self.user = value
            elif each.name == "COPY":
                self._copy(each, source)
            else:
                assert each.name in _UNDONE, each
        return said

    def _copy(self, instruction: Instruction, source: Path) -> None:
        assert not instruction.flags, instruction
        *wanted, target = instruction.value.split()
        assert target in (".", "./"), instruction
        for path in context(source):
            if any(each in (".", path) for each in wanted):
                copied = self.path / self.folder.lstrip("/") / path
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / path, copied)


def make_root(path: Path, suite: str, bootstrap: list[str], arguments: Mapping[str, str]) -> CleanRoot:
    """A minimal Debian of that suite, which finds the hosts that this machine finds."""
    command = [*bootstrap, "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(path)]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert made.returncode == 0, made.stdout[-4000:]
    for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).is_file():
            shutil.copy(Path("/", name), path / name)
    return CleanRoot(path, arguments=dict(arguments))


def _pip_of_this_machine() -> tuple[list[str], dict[str, str]]:
    """Folders that pip takes packages from here, and its settings as variables, with the proxies."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    settings = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in _SETTING.findall(listed)}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    paths = [Path(path) for value in settings.values() for path in _PATH.findall(value)]
    # An index of files leads to files beside it.
    folders = {str(path.parent if path.name == "simple" else path) for path in paths if path.is_dir()}
    # One that is out of reach is asked in vain for every package.
    return sorted(folders), {**settings, **proxies, "PIP_RETRIES": "1"}
