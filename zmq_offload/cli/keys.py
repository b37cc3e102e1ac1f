"""`zmq-offload keys`: make keys, and say whom a broker lets in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zmq_offload.console.settings import file, folder, path
from zmq_offload.errors import printable
from zmq_offload.net import keylist, keys
from zmq_offload.net.grants import Grant


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "keys",
        help="make keys, authorize and revoke them",
        description="CurveZMQ keys for brokers, workers and clients (docs/security.md).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    new = commands.add_parser("new", help="make a key pair", description="Write NAME.key and NAME.key_secret.")
    new.add_argument("name", metavar="NAME", help="who the keys are for")
    new.add_argument("--directory", type=folder, default=".", metavar="DIR", help="output folder (default: .)")
    new.add_argument("--force", action="store_true", help="replace an existing pair")
    new.set_defaults(run=_new)

    authorize = commands.add_parser(
        "authorize",
        help="add a public key to a broker's list",
        description="Add a key to a list, or change the models that it may use. The list is created if needed.",
    )
    authorize.add_argument("key", type=file, metavar="FILE.key", help="the public key; the file's name is kept with it")
    authorize.add_argument("--list", type=path, required=True, metavar="FILE", help="the list of clients or of workers")
    authorize.add_argument("--models", metavar="NAME,...", help="only these models (default: all)")
    authorize.set_defaults(run=_authorize)

    revoke = commands.add_parser(
        "revoke",
        help="remove a name's keys from a broker's list",
        description="Remove all keys of a name from a list. The broker notices within a second.",
    )
    revoke.add_argument("name", metavar="NAME", help="the name in the list")
    revoke.add_argument("--list", type=path, required=True, metavar="FILE", help="the list of clients or of workers")
    revoke.set_defaults(run=_revoke)


def _new(args: argparse.Namespace) -> int:
    public, secret = keys.new_keys(args.name, Path(args.directory), force=args.force)
    print(f"{public}  public: for those who talk to {args.name}")
    print(f"{secret}  secret: for {args.name} alone")
    return 0


def _authorize(args: argparse.Namespace) -> int:
    name = Path(args.key).name.removesuffix("_secret").removesuffix(".key")
    grant = Grant(name, None if args.models is None else keylist.parse_models(args.models))
    before = keylist.authorize(args.list, keys.read_public(args.key), grant)
    changed = "" if before in (None, grant) else f" (it was {_described(before)})"
    print(f"{args.list}: {_described(grant)}{changed}")
    return 0


def _described(grant: Grant) -> str:
    name = printable(grant.name)
    return name if grant.models is None else f"{name}, for {','.join(sorted(grant.models))}"


def _revoke(args: argparse.Namespace) -> int:
    keylist.revoke(args.list, args.name)
    print(f"{args.list}: {printable(args.name)} is out; a broker takes note within a second")
    return 0
