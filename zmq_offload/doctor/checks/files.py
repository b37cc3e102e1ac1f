"""Whether key files, key lists, certificates and the repository can be used. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zmq_offload.common.units import counted
from zmq_offload.doctor.checks.findings import Finding, Level

_OTHERS, _GROUP = 0o007, 0o070

_DAY = 86400.0
_SOON = 14.0
"""Days before its end from which on a certificate is warned of."""


class KeyFile(NamedTuple):
    """A file of a key pair."""

    option: str
    path: str
    error: str
    """Why it cannot be used; "" if it can."""
    public: str = ""
    secret: bool = False
    """Whether it holds the secret key."""
    mode: int = 0o600


class KeyList(NamedTuple):
    """A list of keys or credentials."""

    option: str
    path: str
    error: str
    names: Mapping[str, str] = {}
    """Names by key."""


class Certificate(NamedTuple):
    """A certificate and its key."""

    path: str
    error: str
    """Why the two cannot be used; "" if they can."""
    begins: float | None = None
    ends: float | None = None
    """Seconds since 1970."""
    key_path: str = ""
    key_mode: int = 0o600


class Version(NamedTuple):
    """A version in a repository."""

    name: str
    """ "ocr:3"."""
    error: str
    """Why its files are wrong; "" if they are right."""
    tvm: str = ""
    cpu: str = ""
    """Why this CPU cannot run it; "" if it can."""
    gpu: str = ""
    """The compute capability that it needs; "" if it runs on a CPU."""


class RepositoryFacts(NamedTuple):
    """A model repository."""

    path: str
    error: str
    """Why it cannot be read; "" if it can."""
    versions: Sequence[Version] = ()
    strays: Sequence[str] = ()
    """Names of folders that cannot be a model's."""
    configs: Sequence[str] = ()
    """What is wrong with configurations of models."""


def check_keys(files: Sequence[KeyFile], lists: Sequence[KeyList]) -> list[Finding]:
    """Check the files of keys one by one, and whether they fit each other."""
    if not files and not lists:
        return [Finding("keys", Level.NOTE, "none are given: only programs of this machine should reach the broker")]
    findings = [finding for file in files for finding in _key_file(file)]
    for listed in lists:
        if listed.error:
            remedy = "correct the line, or make the list anew by `zmq-offload keys authorize`"
            findings.append(Finding("keys", Level.FAIL, f"{listed.option}: {listed.error}", remedy))
        elif not listed.names:
            what = _noun(listed)
            text = f"{listed.option}: {listed.path} has no {what}, so nobody may connect"
            remedy = f"add one: zmq-offload keys authorize NAME.key --list {listed.path}"
            findings.append(Finding("keys", Level.WARNING, text, remedy))
        else:
            findings.append(Finding("keys", Level.OK, f"{listed.option}: {counted(len(listed.names), _noun(listed))}"))
    return findings + _fit({f.option: f for f in files if not f.error}, {k.option: k for k in lists if not k.error})


def _noun(listed: KeyList) -> str:
    return "credential" if listed.option == "--access-list" else "key"


def _key_file(file: KeyFile) -> list[Finding]:
    if file.error:
        remedy = "name the right file, or make a pair: zmq-offload keys new NAME"
        return [Finding("keys", Level.FAIL, f"{file.option}: {file.error}", remedy)]
    if not file.secret:
        return [Finding("keys", Level.OK, f"{file.option}: {file.path}")]
    return [_mode("keys", file.option, file.path, file.mode)]


def _mode(check: str, option: str, path: str, mode: int) -> Finding:
    for bits, who, level in ((_OTHERS, "all users", Level.FAIL), (_GROUP, "its group", Level.WARNING)):
        if mode & bits:
            text = f"{option}: {path} is a secret, and {who} may use it (mode {mode:04o})"
            return Finding(check, level, text, f"chmod 600 {path}")
    return Finding(check, Level.OK, f"{option}: {path}")


def _fit(files: Mapping[str, KeyFile], lists: Mapping[str, KeyList]) -> list[Finding]:
    findings = []
    server, broker = files.get("--server-key"), files.get("--broker-key")
    if server and broker and server.public != broker.public:
        text = f"--broker-key: {broker.path} is not the public key of --server-key {server.path}"
        remedy = f"give peers {server.path.removesuffix('_secret')} as the broker's key"
        findings.append(Finding("keys", Level.FAIL, text, remedy))
    for own, allowed in (("--client-key", "--authorized-clients"), ("--worker-key", "--authorized-workers")):
        key, listed = files.get(own), lists.get(allowed)
        if key and listed and key.public not in listed.names:
            text = f"{own}: the public key of {key.path} is not in {allowed} {listed.path}"
            remedy = f"zmq-offload keys authorize {key.path.removesuffix('_secret')} --list {listed.path}"
            findings.append(Finding("keys", Level.FAIL, text, remedy))
    return findings


def check_certificate(facts: Certificate, now: float) -> list[Finding]:
    """Check a gateway's certificate and its key."""
    if facts.error:
        remedy = "give a certificate and its key in PEM, by --tls-cert and --tls-key"
        return [Finding("certificate", Level.FAIL, facts.error, remedy)]
    findings = [_mode("certificate", "--tls-key", facts.key_path, facts.key_mode)] if facts.key_path else []
    if facts.ends is None or facts.begins is None:
        return [*findings, Finding("certificate", Level.NOTE, f"{facts.path}: its time of validity cannot be read")]
    days = (facts.ends - now) / _DAY
    if now < facts.begins:
        text = f"{facts.path} is not valid yet, for {(facts.begins - now) / _DAY:.1f} days"
        findings.append(Finding("certificate", Level.FAIL, text, "set this machine's date, or use another certificate"))
    elif days < _SOON:
        text = f"expired {-days:.1f} days ago" if days < 0 else f"expires in {days:.1f} days"
        level = Level.FAIL if days < 0 else Level.WARNING
        remedy = "renew it; a running gateway takes the new file by itself"
        findings.append(Finding("certificate", level, f"{facts.path} {text}", remedy))
    else:
        findings.append(Finding("certificate", Level.OK, f"{facts.path} is valid for {days:.0f} days"))
    return findings


def check_repository(facts: RepositoryFacts, tvm: str) -> list[Finding]:
    """Check a repository for workers that run on this machine. `tvm` is the installed version, or ""."""
    if facts.error:
        remedy = "name the right folder by --repository, or create one with `zmq-offload compile`"
        return [Finding("repository", Level.FAIL, facts.error, remedy)]
    findings = [finding for version in facts.versions for finding in _version(version, tvm)]
    findings += [
        Finding("repository", Level.FAIL, error, "correct the file; until then workers keep the settings before")
        for error in facts.configs
    ]
    findings += [
        Finding(
            "repository",
            Level.WARNING,
            f"{name} in {facts.path} cannot be a model's name, so nothing in it is served",
            "rename the folder: letters, digits, '_', '-' and '.'",
        )
        for name in facts.strays
    ]
    if not facts.versions:
        findings.append(
            Finding(
                "repository",
                Level.WARNING,
                f"{facts.path} has no version of a model, so its workers serve nothing",
                "compile one: zmq-offload compile MODEL --name NAME -o DIR writes DIR/repository",
            )
        )
    elif not tvm:
        text = f"{counted(len(facts.versions), 'version')} in {facts.path}, and TVM is not installed"
        findings.append(Finding("repository", Level.FAIL, text, "pip install 'zmq-offload[tvm]'"))
    return findings or [
        Finding("repository", Level.OK, f"{facts.path}: {', '.join(version.name for version in facts.versions)}")
    ]


def _version(version: Version, tvm: str) -> list[Finding]:
    if version.error:
        remedy = "compile it again, or copy it again: into a folder whose name begins with a dot, then rename"
        return [Finding("repository", Level.FAIL, version.error, remedy)]
    findings = []
    if version.cpu:
        text, _, remedy = version.cpu.partition("; ")
        findings.append(Finding("repository", Level.FAIL, text, remedy))
    if tvm and version.tvm != tvm:
        text = f"{version.name} was built by TVM {version.tvm}, this is TVM {tvm}"
        findings.append(Finding("repository", Level.FAIL, text, "compile it again with this TVM"))
    return findings
