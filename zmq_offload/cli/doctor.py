"""`zmq-offload doctor`: find what is wrong with this machine, its files, its ports and a broker."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zmq_offload.common.devices import CPU, WANTED, named
from zmq_offload.common.units import counted
from zmq_offload.console.configfile import add_config_of_all
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import (
    FRONTEND,
    NONE,
    add_option,
    add_optional_frontend,
    address,
    check_together,
    checked,
    count,
    file,
    folder,
    listening,
    seconds,
)
from zmq_offload.console.terminal import console_of
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import printable
from zmq_offload.gateway.config import Config

if TYPE_CHECKING:
    from zmq_offload.doctor.checks.findings import Finding

BACKEND = "tcp://127.0.0.1:5556"
"""Where a broker listens for workers by default."""

_device = checked(named, bool, WANTED)

_FILES = (
    ("--server-key", "a broker's NAME.key_secret"),
    ("--authorized-clients", "a broker's list of the clients' keys"),
    ("--authorized-workers", "a broker's list of the workers' keys"),
    ("--client-key", "a client's NAME.key_secret"),
    ("--worker-key", "a worker's NAME.key_secret"),
    ("--broker-key", "the broker's NAME.key, for its peers"),
    ("--access-list", "a gateway's list of tokens and client certificates"),
    ("--tls-cert", "a gateway's certificate, in PEM"),
    ("--tls-key", "the key of that certificate"),
)


def add_options(parser: Parser) -> None:
    parser.description = (
        "Check this machine, its installation, keys, model repository and ports, and a broker. Each finding says what "
        "is wrong and what to do. The exit code is 1 if something does not work."
    )
    parser.set_example(
        "zmq-offload doctor",
        "zmq-offload doctor --repository dist/repository --broker tcp://edge-1:5555",
    )
    add_optional_frontend(parser, "ask the brokers with these frontends, which must answer")
    for flag, default, peers in (("--frontend", FRONTEND, "clients"), ("--backend", BACKEND, "workers")):
        text = f"where brokers of this machine take {peers}"
        add_option(parser, flag, listening, default, text, metavar="ENDPOINT,...")
    for flag, default in (("--http", Config.http), ("--grpc", Config.grpc)):
        text = f"where a gateway of this machine takes {'HTTP' if flag == '--http' else 'gRPC'}, or none"
        add_option(parser, flag, address, default, text, metavar="HOST:PORT")
    for program, variable in (("broker", "METRICS"), ("gateway", "GATEWAY_METRICS")):
        flag, text = f"--{program}-metrics", f"where a {program} of this machine serves metrics, or none"
        add_option(parser, flag, address, NONE, text, variable=f"{PREFIX}{variable}", metavar="HOST:PORT")
    add_option(parser, "--repository", folder, None, "model repository to check, with all checksums", metavar="DIR")
    add_option(parser, "--device", _device, CPU, "what workers run models on: cpu, or GPUs", metavar="D,...")
    for flag, text in _FILES:
        add_option(parser, flag, file, None, text, metavar="FILE")
    add_option(
        parser, "--max-connections", count, Config.max_connections, "connections of a gateway's port", metavar="N"
    )
    add_option(parser, "--timeout", seconds, 5.0, "maximum seconds to wait for the broker", metavar="S")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_config_of_all(parser, "doctor", but=("broker", "timeout", "json"))
    parser.set_defaults(run=lambda args: run(args, parser))


def run(args: argparse.Namespace, parser: Parser) -> int:
    from zmq_offload.doctor.checks.findings import failed
    from zmq_offload.doctor.examine import Subject, examine

    if args.client_key:
        check_together(parser, args, "--client-key", "--broker-key")
    check_together(parser, args, "--tls-cert", "--tls-key")
    given = {key: value for key, value in vars(args).items() if key in Subject.__dataclass_fields__}
    for port in ("http", "grpc", "broker_metrics", "gateway_metrics"):
        given[port] = None if given[port] == NONE else given[port]
    findings = []
    for finding in examine(Subject(**given)):
        findings.append(finding)
        if not args.json:
            show_finding(finding)  # at once: some checks take seconds
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print(summary(findings))
    return int(failed(findings))


def summary(findings: Sequence[Finding]) -> str:
    """The last line: "2 failures, 1 warning"."""
    levels = [finding.level.value for finding in findings]
    failures, warnings = levels.count("fail"), levels.count("warning")
    if not failures and not warnings:
        return "nothing is wrong"
    return f"{counted(failures, 'failure')}, {counted(warnings, 'warning')}"


_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "fail": "bold red"}


def show_finding(finding: Finding) -> None:
    """Print a finding, with what to do in a line of its own."""
    level = finding.level.value
    word = level.upper() if level == "fail" else level
    lines = [printable(finding.text), *([f"-> {printable(finding.remedy)}"] if finding.remedy else [])]
    console = console_of(sys.stdout)
    if console is None:
        indented = f"\n{'':22}".join(lines)
        print(f"{word:<7} {finding.check:<13} {indented}", flush=True)
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=7, style=_STYLES[level])
    grid.add_column(width=13)
    grid.add_column(overflow="fold")
    grid.add_row(Text(word), Text(finding.check), Text(lines[0]))
    if finding.remedy:
        grid.add_row("", "", Text(lines[1], style="bold"))
    console.print(grid)
