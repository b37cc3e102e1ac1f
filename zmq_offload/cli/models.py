"""`zmq-offload models`: which models and versions are served, and under which labels."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import add_frontend, add_option, checked, file, seconds
from zmq_offload.console.tables import Column, Table, show
from zmq_offload.errors import InvalidArgument, OffloadError, Unavailable
from zmq_offload.protocol.names import check_model_name, check_version

if TYPE_CHECKING:
    from zmq_offload.artifacts.repository import Repository
    from zmq_offload.console.parser import Commands

_POLL = 0.2
"""Seconds between two looks at what the broker serves."""


def _target(text: str) -> tuple[str, int | None]:
    name, colon, number = text.partition(":")
    if colon and not number.isdecimal():
        raise InvalidArgument(f"{text!r} has no version number after its colon; use MODEL or MODEL:VERSION")
    return check_model_name(name), check_version(int(number)) if colon else None


_LOAD = (
    "Let workers serve a model as before it was unloaded, or else all of its versions; or let them serve one version "
    "more. Other versions stay as they are."
)
_UNLOAD = "Let workers serve no version of a model, or one version less. Its files stay in the repository."

target = checked(_target, lambda _: True, "MODEL or MODEL:VERSION")
model = checked(check_model_name, lambda _: True, "a model's name")
version = checked(lambda text: check_version(int(text)), lambda _: True, "a version number")


def add_options(parser: Parser) -> None:
    parser.description = (
        "List the models of a repository, and choose which versions workers serve, under which labels. The choice is "
        "written to config.toml in the model's folder, and workers follow it within their --refresh."
    )
    parser.set_example(
        "zmq-offload models list",
        "zmq-offload models label ocr stable 3",
        "zmq-offload models unload ocr:2",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list",
        help="models and versions, with what is served",
        description="Show each version of a repository: whether it is wanted, served, the latest, and its labels.",
    )
    listing.set_example("zmq-offload models list --repository dist/repository")
    _add_common(listing, _list)
    _add_change(commands, "load", "let workers serve a model, or one version of it", _LOAD, _load)
    _add_change(commands, "unload", "let workers drop a model, or one version of it", _UNLOAD, _unload)
    label = commands.add_parser(
        "label",
        help="let a label stand for a version",
        description="Let a label stand for a version. Clients that ask for the label get that version.",
    )
    label.set_example("zmq-offload models label ocr stable 3", "zmq-offload models label ocr stable --remove")
    label.add_argument("model", type=model, metavar="MODEL")
    label.add_argument("label", metavar="LABEL")
    chosen = label.add_mutually_exclusive_group(required=True)
    chosen.add_argument("version", type=version, nargs="?", metavar="VERSION")
    chosen.add_argument("--remove", action="store_true", help="remove the label")
    _add_common(label, _label)
    _add_wait(label)


def _add_change(
    commands: Commands, name: str, text: str, description: str, run: Callable[[argparse.Namespace], int]
) -> None:
    command = commands.add_parser(name, help=text, description=description)
    command.set_example(f"zmq-offload models {name} ocr", f"zmq-offload models {name} ocr:2 --wait 30")
    command.add_argument("target", type=target, metavar="MODEL[:VERSION]")
    _add_common(command, run)
    _add_wait(command)


def _add_common(command: Parser, run: Callable[[argparse.Namespace], int]) -> None:
    add_option(command, "--repository", file, "dist/repository", "the model repository", metavar="DIR")
    add_frontend(command)
    add_option(command, "--timeout", seconds, 5.0, "maximum seconds to wait for the broker", metavar="S")
    command.set_defaults(run=run)


def _add_wait(command: Parser) -> None:
    command.add_argument("--wait", type=seconds, metavar="S", help="wait so many seconds for workers to follow")


def _repository(args: argparse.Namespace) -> Repository:
    from zmq_offload.artifacts.repository import Repository

    return Repository(args.repository)


# --- list -----------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from zmq_offload.client.sync import Client

    served: dict[tuple[str, int], dict[str, Any]] | None = None
    try:
        with Client(args.broker, timeout=args.timeout) as client:
            served = {(m["name"], m["version"]): m for m in client.status()["models"]}
        below = ""
    except Unavailable as error:
        below = f"what is served is not known: {error.message}"
    rows, faults = _rows(_repository(args), served)
    columns = (
        Column("model"),
        Column("version", right=True),
        Column("wanted"),
        Column("served"),
        Column("latest"),
        Column("labels", folds=True),
    )
    show(Table(columns, rows, "models"), *faults, *([below] if below else []))
    return 0


def _rows(
    repository: Repository, served: dict[tuple[str, int], dict[str, Any]] | None
) -> tuple[list[list[str]], list[str]]:
    """A row for each version that is in the repository or served, if that is known, and what is wrong with
    configurations."""
    from zmq_offload.artifacts.config import read

    wanted: dict[tuple[str, int], str] = {}
    labels: dict[tuple[str, int], list[str]] = {}
    faults = []
    for name in repository.models():
        there = repository.versions(name)
        try:
            config = read(repository.root / name)
        except OffloadError as error:
            faults.append(error.message)
            wanted.update(((name, number), "?") for number in there)  # workers go by the last good one
            continue
        chosen_ones = set(config.serves(there))
        for number in there:
            chosen = number in chosen_ones
            canary = config.canary is not None and config.canary.version == number
            wanted[name, number] = ("canary" if canary else "yes") if chosen else "no"
            labels[name, number] = sorted(label for label, labeled in config.labels.items() if labeled == number)
    rows = []
    for key in sorted({*wanted, *(served or ())}):
        known = None if served is None else served.get(key)
        workers = 0 if known is None else known["workers"]
        rows.append(
            [
                key[0],
                str(key[1]),
                wanted.get(key, "not in this repository"),
                _served_by(workers) if served is not None else "?",
                "yes" if known is not None and known.get("latest") else "",
                ", ".join(labels.get(key) or (known or {}).get("labels", [])),
            ]
        )
    return rows, faults


def _served_by(workers: int) -> str:
    return f"by {workers} worker{'s' * (workers != 1)}" if workers else "no"


# --- changes --------------------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> int:
    from zmq_offload.artifacts import configedit

    name, number = args.target
    config = configedit.load(_repository(args), name, number)
    wanted = [number] if number is not None else config.serves(_repository(args).versions(name))
    return _changed(args, name, lambda served: all(v in served for v in wanted))


def _unload(args: argparse.Namespace) -> int:
    from zmq_offload.artifacts import configedit

    name, number = args.target
    configedit.unload(_repository(args), name, number)
    return _changed(args, name, lambda served: not served if number is None else number not in served)


def _label(args: argparse.Namespace) -> int:
    from zmq_offload.artifacts import configedit

    number = None if args.remove else args.version
    configedit.label(_repository(args), args.model, args.label, number)

    def followed(served: dict[int, dict[str, Any]]) -> bool:
        return [v for v, known in served.items() if args.label in known.get("labels", [])] == (
            [] if number is None else [number]
        )

    return _changed(args, args.model, followed)


def _changed(args: argparse.Namespace, name: str, followed: Callable[[dict[int, dict[str, Any]]], bool]) -> int:
    """Say what is written, and wait for the broker to see it if that is wanted."""
    from zmq_offload.artifacts.config import CONFIG
    from zmq_offload.client.sync import Client

    place = _repository(args).root / name / CONFIG
    if args.wait is None:
        show(f"{place} is written; workers follow within their --refresh (5 s)")
        return 0
    end = time.monotonic() + args.wait
    with Client(args.broker, timeout=args.timeout) as client:
        while True:
            served = {m["version"]: m for m in client.status()["models"] if m["name"] == name}
            if followed(served):
                show(f"{place} is written, and workers follow it")
                return 0
            if time.monotonic() >= end:
                listing = ", ".join(map(str, sorted(served))) or "none"
                raise Unavailable(
                    f"{place} is written, but no worker followed within {args.wait:g} s; served versions: {listing} "
                    "(the workers' logs say why)"
                )
            time.sleep(_POLL)
