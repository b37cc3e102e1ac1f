"""Whether the installed packages are those that this release needs, and variables have no slips. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.doctor.checks.findings import Finding, Level
from zmq_offload.errors import printable

EXTRAS: Mapping[str, str] = {
    "tvm": "workers and devices",
    "cli": "colors and completion at a terminal, `zmq-offload top` and `models`",
    "compile": "`zmq-offload compile`, `profile` and `plan`",
    "gateway": "`zmq-offload gateway`",
    "redis": "answers that a gateway keeps in Redis",
    "traces": "traces for OpenTelemetry",
    "grpc": "devices that call gRPC servers",
    "load": "the pictures of `zmq-offload load`",
    "quantize": "`zmq-offload compile --quantize`",
    "tune": "`zmq-offload compile --tune`",
    "cuda": "GPUs",
    "torch": "models of PyTorch",
    "tvmrpc": "TVM's RPC server",
    "demo": "`zmq-offload demo` and `honcho start`",
}
"""The extras that a user may miss, and what each is for."""

_VITAL = ("", "tvm")
"""Extras whose packages make everything fail if their version is wrong; "" is what every installation has."""


class Installation(NamedTuple):
    """What is installed."""

    python: str
    version: str
    """This release."""
    requires: tuple[str, ...]
    """The requirements of this release, as its metadata has them."""
    versions: Mapping[str, str]
    """Installed packages by their normalized names."""
    libzmq: str
    curve: bool
    """Whether libzmq can encrypt."""
    compiled: bool
    """Whether compiled code handles messages."""
    switched_off: bool
    """Whether a variable says that Python does, even if compiled code is installed."""


class Requirement(NamedTuple):
    """A line of the metadata: `apache-tvm<0.28,>=0.27.0; extra == "tvm"`."""

    name: str
    wanted: str
    extra: str
    below_python: str
    """The Python from which on the package is not needed; "" if there is none."""


def requirement(line: str) -> Requirement:
    """Read a requirement."""
    package, _, marker = line.partition(";")
    found = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*\(?([^)]*)\)?", package)
    name, wanted = (found[1], found[2].replace(" ", "")) if found else (package, "")
    extra = re.search(r'extra == ["\']([^"\']+)', marker)
    python = re.search(r'python_version < ["\']([^"\']+)', marker)
    return Requirement(normal(name), wanted, extra[1] if extra else "", python[1] if python else "")


def normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def met(wanted: str, version: str) -> bool:
    """Whether a version is within `>=1.2,<2`. Other operators than those of this project's metadata hold."""
    has = _numbers(version)
    for part in filter(None, wanted.split(",")):
        limit = _numbers(part)
        if part.startswith(">=") and has < limit:
            return False
        if part.startswith("<") and not part.startswith("<=") and has >= limit:
            return False
        if part.startswith("==") and has != limit:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(digits) for digits in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def check_installation(facts: Installation) -> list[Finding]:
    """Compare the installed packages with what this release needs."""
    findings = [
        Finding("versions", Level.OK, f"zmq-offload {facts.version}, Python {facts.python}, libzmq {facts.libzmq}")
    ]
    needed = [requirement(line) for line in facts.requires]
    python = ".".join(facts.python.split(".")[:2])
    needed = [r for r in needed if not r.below_python or _numbers(python) < _numbers(r.below_python)]
    if not facts.requires:
        findings.append(
            Finding(
                "versions",
                Level.WARNING,
                "this installation has no metadata, so versions of packages are not compared",
                "install the package: pip install zmq-offload",
            )
        )
    for extra in ("", *EXTRAS):
        findings += _of_extra(extra, [r for r in needed if r.extra == extra and r.name != "zmq-offload"], facts)
    if not facts.curve:
        findings.append(
            Finding(
                "versions",
                Level.WARNING,
                f"libzmq {facts.libzmq} was built without CURVE, so keys cannot be used",
                "install pyzmq from PyPI, which brings its own libzmq: pip install --force-reinstall pyzmq",
            )
        )
    return [*findings, _compiled(facts)]


def _compiled(facts: Installation) -> Finding:
    check, instead = "compiled code", "Python does the same, and takes more CPU time for a small request"
    if facts.switched_off:
        return Finding(check, Level.NOTE, f"switched off by ZMQ_OFFLOAD_NATIVE: {instead}", "unset the variable")
    if not facts.compiled:
        return Finding(
            check,
            Level.NOTE,
            f"not installed (zmq_offload.native.wire): {instead}",
            "install zmq-offload again where there are a C compiler and Python's headers (python3-dev)",
        )
    return Finding(check, Level.OK, "frames and envelopes of messages are handled by compiled code")


def _of_extra(extra: str, needed: list[Requirement], facts: Installation) -> list[Finding]:
    missing = [r.name for r in needed if r.name not in facts.versions]
    wrong = [r for r in needed if r.name in facts.versions and not met(r.wanted, facts.versions[r.name])]
    install = f"pip install 'zmq-offload[{extra}]'" if extra else "pip install zmq-offload"
    findings = [
        Finding(
            "versions",
            Level.FAIL if extra in _VITAL else Level.WARNING,
            f"{r.name} {facts.versions[r.name]} is installed, and {f'the extra {extra}' if extra else 'this release'} "
            f"needs {r.name}{r.wanted}",
            install,
        )
        for r in wrong
    ]
    if missing and extra:
        text = f"extra {extra} is missing, for {EXTRAS[extra]}: {', '.join(missing)}"
        findings.append(Finding("versions", Level.NOTE, text, install))
    elif missing:
        findings.append(Finding("versions", Level.FAIL, f"missing packages: {', '.join(missing)}", install))
    elif needed and extra and not wrong:
        shown = ", ".join(f"{r.name} {facts.versions[r.name]}" for r in needed)
        findings.append(Finding("versions", Level.OK, f"extra {extra}: {shown}"))
    return findings


def check_variables(given: Iterable[str], known: Iterable[str], prefix: str) -> list[Finding]:
    """Find variables with this project's prefix that nothing reads."""
    known = sorted(known)
    ours = sorted(name for name in given if name.startswith(prefix))
    findings = [
        Finding(
            "variables",
            Level.WARNING,
            f"unknown variable {printable(name)}, which nothing reads{did_you_mean(name, known, prefix=prefix)}",
            "correct its name, or unset it; docs/configuration.md lists all variables",
        )
        for name in ours
        if name not in known
    ]
    return findings or [Finding("variables", Level.OK, ", ".join(ours) or "none is set")]
