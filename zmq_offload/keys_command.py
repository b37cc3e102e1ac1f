"""`zmq-offload keys`: make keys, and say whom a broker lets in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zmq_offload import keylist, keys
from zmq_offload.errors import printable
from zmq_offload.grants import Grant


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "keys",
        help="make keys, authorize and revoke them",
        description="CurveZMQ keys for brokers, workers and clients (docs/security.md).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    new = commands.add_parser("new", help="make a key pair", description="Write NAME.key and NAME.key_secret.")
    new.add_argument("name", metavar="NAME")
    new.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="where to, default here")
    new.add_argument("--force", action="store_true", help="replace a pair that is there")
    new.set_defaults(run=_new)

    authorize = commands.add_parser("authorize", help="add a public key to a broker's list")
    authorize.add_argument("key", metavar="FILE.key")
    authorize.add_argument("--list", type=Path, required=True, metavar="FILE", help="the list of clients or of workers")
    authorize.add_argument("--models", metavar="NAME,...", help="only these models (default: all)")
    authorize.set_defaults(run=_authorize)

    revoke = commands.add_parser("revoke", help="take a name's keys out of a broker's list")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--list", type=Path, required=True, metavar="FILE", help="the list of clients or of workers")
    revoke.set_defaults(run=_revoke)


def _new(args: argparse.Namespace) -> int:
    public, secret = keys.new_keys(args.name, args.directory, force=args.force)
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
