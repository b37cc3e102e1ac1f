"""`zmq-offload keys`: make keys, and choose which of them a broker accepts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import file, folder, path
from zmq_offload.console.tables import Facts, show
from zmq_offload.errors import printable
from zmq_offload.net import keylist, keys
from zmq_offload.net.grants import Grant

if TYPE_CHECKING:
    from zmq_offload.console.parser import Commands


def add_options(parser: Parser) -> None:
    parser.description = "CurveZMQ keys for brokers, workers and clients (docs/security.md)."
    parser.set_example(
        "zmq-offload keys new camera-1",
        "zmq-offload keys authorize camera-1.key --list clients.keys --models ocr",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_new(commands)
    _add_authorize(commands)
    _add_revoke(commands)


def _add_new(commands: Commands) -> None:
    new = commands.add_parser("new", help="make a key pair", description="Write NAME.key and NAME.key_secret.")
    new.set_example("zmq-offload keys new camera-1 --directory keys")
    new.add_argument("name", metavar="NAME", help="owner of the keys")
    new.add_argument("--directory", type=folder, default=".", metavar="DIR", help="output folder (default: .)")
    new.add_argument("--force", action="store_true", help="replace an existing pair")
    new.set_defaults(run=_new)


def _add_authorize(commands: Commands) -> None:
    authorize = commands.add_parser(
        "authorize",
        help="add a public key to a broker's list",
        description="Add a key to a list, or change the models that it may use. The list is created if needed.",
    )
    authorize.set_example("zmq-offload keys authorize camera-1.key --list clients.keys")
    authorize.add_argument("key", type=file, metavar="FILE.key", help="the public key; the list keeps the file's name")
    authorize.add_argument("--list", type=path, required=True, metavar="FILE", help="list of clients or of workers")
    authorize.add_argument("--models", metavar="NAME,...", help="only these models (default: all)")
    authorize.set_defaults(run=_authorize)


def _add_revoke(commands: Commands) -> None:
    revoke = commands.add_parser(
        "revoke",
        help="remove a name's keys from a broker's list",
        description="Remove all keys of a name from a list. The broker notices within a second.",
    )
    revoke.set_example("zmq-offload keys revoke camera-1 --list clients.keys")
    revoke.add_argument("name", metavar="NAME", help="name in the list")
    revoke.add_argument("--list", type=path, required=True, metavar="FILE", help="list of clients or of workers")
    revoke.set_defaults(run=_revoke)


def _new(args: argparse.Namespace) -> int:
    public, secret = keys.new_keys(args.name, Path(args.directory), force=args.force)
    facts = ((str(public), f"public: for peers of {args.name}"), (str(secret), f"secret: for {args.name} alone"))
    show(Facts(facts, width=len(str(secret)) + 1))
    return 0


def _authorize(args: argparse.Namespace) -> int:
    name = Path(args.key).name.removesuffix("_secret").removesuffix(".key")
    grant = Grant(name, None if args.models is None else keylist.parse_models(args.models))
    before = keylist.authorize(args.list, keys.read_public(args.key), grant)
    changed = "" if before in (None, grant) else f" (was {_described(before)})"
    print(f"{args.list}: {_described(grant)}{changed}")
    return 0


def _described(grant: Grant) -> str:
    name = printable(grant.name)
    return name if grant.models is None else f"{name}, for {','.join(sorted(grant.models))}"


def _revoke(args: argparse.Namespace) -> int:
    keylist.revoke(args.list, args.name)
    print(f"{args.list}: {printable(args.name)} is removed; a broker notices within a second")
    return 0
