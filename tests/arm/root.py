"""A Debian of arm64 in a folder, with what a device needs, whose programs qemu-user runs on this machine.

`python -m tests.arm.root` makes it once (half a minute, 460 MB) and prints its folder. After that,

    python -m tests.arm.root --cpu cortex-a72 -- python3 -c 'import platform; print(platform.machine())'

runs a program of it. Neither needs the rights of root, a chroot or binfmt_misc. The Debian packages come from
deb.debian.org, the wheels from PyPI as pyproject.toml names them. The folder is in ~/.cache/zmq-offload, or in
ARM64_ROOTS. Delete it to get newer packages.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = Path(__file__).parents[2]
MIRROR = "https://deb.debian.org/debian/"
SUITE = "bookworm"
PYTHON = "3.11"
DEBIAN = ("python3", "libstdc++6", "libgomp1", "ca-certificates")
"""The packages that are asked for. Those that they depend on come along."""
MANYLINUX = ("2_28", "2_27", "2_26", "2_24", "2_17")
EXTRAS = ("tvm",)
"""The extras of pyproject.toml that a device installs."""


class Missing(Exception):
    """What this machine lacks for an arm64 root."""


@dataclass(frozen=True)
class Root:
    """An arm64 root in `folder`."""

    folder: Path

    def command(self, program: Sequence[str | Path], cpu: str | None = None) -> list[str]:
        """The command line that runs a program: one in the root by its name, or one anywhere by its path."""
        name, *arguments = map(str, program)
        path = name if "/" in name else str(self.folder / "usr/bin" / name)
        return [emulator(), "-L", str(self.folder), *(["-cpu", cpu] if cpu else []), path, *arguments]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of its programs. Python finds its own library, the root's wheels and this project."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        path = f"{self.folder / 'opt/site'}:{PROJECT}"
        return {**kept, "PYTHONHOME": str(self.folder / "usr"), "PYTHONPATH": path, **(more or {})}

    def run(
        self, program: Sequence[str | Path], cpu: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, and return what it printed. Raises CalledProcessError."""
        return subprocess.run(
            self.command(program, cpu), env=self.environment(more), check=True, text=True, capture_output=True
        )


def emulator() -> str:
    """The path of qemu-user for aarch64. Raises Missing."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        raise Missing("qemu-aarch64(-static), of Debian's package qemu-user-static, is missing")
    return found


def arm_root(extra: Sequence[str] = ()) -> Root:
    """The root, with the `extra` packages of PyPI in it. It is made if it is not there. Raises Missing."""
    emulator()
    wanted = [*requirements(), *sorted(extra)]
    about = "\n".join((SUITE, PYTHON, *DEBIAN, *wanted))
    place = os.environ.get("ARM64_ROOTS") or Path.home() / ".cache/zmq-offload"
    folder = Path(place) / f"arm64-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="arm64-") as scratch:
                made = Path(scratch) / "root"
                _make(made, wanted)
                made.rename(folder)
    return Root(folder)


def requirements() -> list[str]:
    """What a device installs, as pyproject.toml has it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(line for name in EXTRAS for line in project["optional-dependencies"][name])]


def _make(folder: Path, wanted: Sequence[str]) -> None:
    if shutil.which("dpkg-deb") is None:
        raise Missing("dpkg-deb, of Debian's package dpkg, is missing")
    try:
        for deb in _debs(folder):
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
            deb.unlink()
    except OSError as error:
        raise Missing(f"the Debian packages of arm64 cannot be had: {error}") from None
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    pip += ["--target", str(folder / "opt/site"), "--implementation", "cp", "--python-version", PYTHON]
    pip += [f"--platform=manylinux_{glibc}_aarch64" for glibc in MANYLINUX]
    done = subprocess.run([*pip, "--platform=manylinux2014_aarch64", *wanted], check=False, stderr=subprocess.PIPE)
    if done.returncode:
        raise Missing(f"the wheels of aarch64 cannot be had: {done.stderr.decode().strip()}")


def _debs(folder: Path) -> Iterator[Path]:
    """Download the packages, and what they depend on, one by one."""
    index = lzma.decompress(_get(f"dists/{SUITE}/main/binary-arm64/Packages.xz")).decode()
    known = {}
    for stanza in index.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Depends|Pre-Depends|Filename|SHA256): (.*)$", stanza, re.M))
        if fields:
            known[fields["Package"]] = fields
    folder.mkdir()
    for name in sorted(closure(known, DEBIAN)):
        data = _get(known[name]["Filename"])
        if hashlib.sha256(data).hexdigest() != known[name]["SHA256"]:
            raise OSError(f"the package {name} is not the one of the index; load it again")
        path = folder / f"{name}.deb"
        path.write_bytes(data)
        yield path


def closure(known: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> set[str]:
    """The packages `names` and all that they depend on. Of alternatives the first that is known counts."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        depends = ", ".join(known[name][field] for field in ("Pre-Depends", "Depends") if field in known[name])
        for alternatives in filter(None, depends.split(", ")):
            one_of = [re.split(r"[ :(]", option.strip())[0] for option in alternatives.split("|")]
            waiting.extend([option for option in one_of if option in known][:1])
    return found


def _get(path: str) -> bytes:
    with urllib.request.urlopen(MIRROR + path, timeout=60) as answer:
        data: bytes = answer.read()
    return data


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time makes the root."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.arm.root", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", help="the CPU that qemu emulates, e.g. cortex-a72 (default: qemu's)")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="PACKAGE", help="also from PyPI")
    parser.add_argument("program", nargs="*", help="a program of the root, or a path; with its arguments")
    given = parser.parse_args()
    try:
        root = arm_root(given.extra)
    except Missing as reason:
        sys.exit(f"{parser.prog}: {reason}")
    if not given.program:
        print(root.folder)
        return
    command = root.command(given.program, given.cpu)
    os.execve(command[0], command, root.environment())


if __name__ == "__main__":
    main()
