"""What of a device's packages a device image has: which requirements, and which files of their wheels. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOMS = (
    "artifacts", "client", "common", "device", "native", "net", "protobuf", "protocol", "runtime", "telemetry",
    "transports",
)  # fmt: skip
"""The rooms of this package that a device uses, beside the modules above them."""

COMMANDS = ("cli", "console", "dashboard", "plan", "compile/__init__.py", "compile/interrupt.py")
"""What the commands `status` and `profile PARTS` need more."""

_ONLY = {
    # The compiler is 259 MB of 350, and its package in Python serves nothing else.
    "tvm": r"tvm/(lib/libtvm_runtime(_extra)?\.so|_version\.py|LICENSE|NOTICE|licenses/.*)",
    # core is linked to both libraries.
    "tvm_ffi": r"tvm_ffi/(.*\.py|core\.[^/]*\.so|lib/libtvm_ffi(_testing)?\.so)",
}
"""Of these packages, only what matches. Of others, all but what `_NEVER` matches. A license always stays."""

_NEVER = re.compile(r"(.*/)?(tests|include|__pycache__|distutils|f2py|_pyinstaller)/.*|.*\.(pyi|pyx|pxd|a|h|c)")

UNUSED = ("ml_dtypes",)
"""Packages that the compiler depends on."""


def requirements(declared: Iterable[str], extra: str, python: str) -> list[str]:
    """What a device installs, from the requirements that this distribution declares: those of no extra, and an
    extra's. Markers are left out, since pip evaluates them for the Python that runs it, and not for the device's."""
    found = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        named = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        before = re.search(r"python_version\s*<\s*['\"]3\.(\d+)['\"]", marker)
        if (named is None or named[1] == extra) and (before is None or int(python[2:]) < int(before[1])):
            found.append(requirement.strip())
    return found


def place_of(member: str) -> str | None:
    """Where a file of a wheel goes, relative to the folder of the packages; None if a device does not need it."""
    parts = member.split("/")
    if parts[0].endswith(".data"):
        if parts[1:2] not in (["purelib"], ["platlib"]):
            return None
        parts = parts[2:]
    path = "/".join(parts)
    if "" in parts or ".." in parts:  # a folder, or a file outside of the image
        return None
    if parts[0].endswith(".dist-info"):  # licenses, and what importlib.metadata reads
        return path if parts[-1] != "RECORD" else None
    only = _ONLY.get(parts[0])
    if only is not None:
        return path if re.fullmatch(only, path) else None
    return path if not _NEVER.fullmatch(path) else None


def platforms(machine: str) -> list[str]:
    """pip's names of the Linux platforms whose wheels run on a machine with glibc 2.28 or newer, as Debian 11 has."""
    versions = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)]
    return [*versions, f"manylinux2014_{machine}", "any"]


def download(wanted: Sequence[str], folder: Path, machine: str, python: str, wheels: Path | None) -> list[str]:
    """The arguments of pip that put the wheels of `wanted` into a folder, from PyPI or from a folder of `wheels`."""
    source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    names = [option for platform in platforms(machine) for option in ("--platform", platform)]
    return [
        "download", "--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder), *source,
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *names, *wanted,
    ]  # fmt: skip
