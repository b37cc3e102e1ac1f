"""`zmq-offload keys`: make keys and tokens, and choose which of them a broker or a gateway accepts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import file, folder, path
from zmq_offload.console.tables import Facts, show
from zmq_offload.errors import printable
from zmq_offload.net import credentials, keylist, keys
from zmq_offload.net.credentials import CREDENTIALS
from zmq_offload.net.grants import Grant

if TYPE_CHECKING:
    from zmq_offload.console.parser import Commands


def add_options(parser: Parser) -> None:
    parser.description = (
        "CurveZMQ keys for brokers, workers and clients; tokens and certificates for gateways (docs/security.md)."
    )
    parser.set_example(
        "zmq-offload keys new camera-1",
        "zmq-offload keys authorize camera-1.key --list clients.keys --models ocr",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_new(commands)
    _add_authorize(commands)
    _add_token(commands)
    _add_certificate(commands)
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
    _add_models(authorize)
    authorize.set_defaults(run=_authorize)


def _add_token(commands: Commands) -> None:
    token = commands.add_parser(
        "token",
        help="make a bearer token for a gateway",
        description=(
            "Make a token, add its hash to a gateway's list, and print the token, which is kept nowhere. The list is "
            "created if needed."
        ),
    )
    token.set_example("zmq-offload keys token phone-7 --list gateway.list --models ocr")
    token.add_argument("name", metavar="NAME", help="owner of the token")
    token.add_argument("--list", type=path, required=True, metavar="FILE", help="list of the gateway's clients")
    _add_models(token)
    token.add_argument("--stdin", action="store_true", help="add the token that is read from standard input instead")
    token.set_defaults(run=_token)


def _add_certificate(commands: Commands) -> None:
    certificate = commands.add_parser(
        "certificate",
        help="let a client certificate in at a gateway",
        description=(
            "Add a certificate to a gateway's list, or change the models that it may use. The list is created if "
            "needed."
        ),
    )
    certificate.set_example(
        "zmq-offload keys certificate camera-2.crt --list gateway.list",
        "zmq-offload keys certificate dns:press.example --list gateway.list \\\n    --models ocr",
    )
    certificate.add_argument(
        "which",
        metavar="FILE.crt",
        help="a certificate in PEM; or its name: dns:NAME, uri:NAME, email:NAME, cn:NAME",
    )
    certificate.add_argument("--list", type=path, required=True, metavar="FILE", help="list of the gateway's clients")
    certificate.add_argument("--name", metavar="NAME", help="owner of the certificate (default: the name of the file)")
    _add_models(certificate)
    certificate.set_defaults(run=_certificate)


def _add_models(parser: Parser) -> None:
    parser.add_argument("--models", metavar="NAME,...", help="only these models (default: all)")


def _add_revoke(commands: Commands) -> None:
    revoke = commands.add_parser(
        "revoke",
        help="remove a name from a list",
        description="Remove all keys, tokens and certificates of a name. The program that reads the list notices soon.",
    )
    revoke.set_example("zmq-offload keys revoke camera-1 --list clients.keys")
    revoke.add_argument("name", metavar="NAME", help="name in the list")
    revoke.add_argument("--list", type=path, required=True, metavar="FILE", help="list of a broker or of a gateway")
    revoke.set_defaults(run=_revoke)


def _new(args: argparse.Namespace) -> int:
    public, secret = keys.new_keys(args.name, Path(args.directory), force=args.force)
    facts = ((str(public), f"public: for peers of {args.name}"), (str(secret), f"secret: for {args.name} alone"))
    show(Facts(facts, width=len(str(secret)) + 1))
    return 0


def _authorize(args: argparse.Namespace) -> int:
    name = Path(args.key).name.removesuffix("_secret").removesuffix(".key")
    return _add(args, name, keys.read_public(args.key), keylist.KEYS)


def _token(args: argparse.Namespace) -> int:
    token = credentials.check_token(sys.stdin.readline().strip()) if args.stdin else credentials.new_token()
    keylist.authorize(args.list, credentials.token_entry(token).encode(), _grant(args, args.name), CREDENTIALS)
    if not args.stdin:
        print(token)
    return 0


def _certificate(args: argparse.Namespace) -> int:
    if credentials.is_entry(args.which):
        credentials.check_entry(args.which)
        entry, name = args.which, args.which.partition(":")[2]
    else:
        entry, name = credentials.read_certificate(Path(args.which)), Path(args.which).stem
    return _add(args, name if args.name is None else args.name, entry.encode(), CREDENTIALS)


def _add(args: argparse.Namespace, name: str, key: bytes, form: keylist.Form) -> int:
    grant = _grant(args, name)
    before = keylist.authorize(args.list, key, grant, form)
    changed = "" if before in (None, grant) else f" (was {_described(before)})"
    print(f"{args.list}: {_described(grant)}{changed}")
    return 0


def _grant(args: argparse.Namespace, name: str) -> Grant:
    return Grant(name, None if args.models is None else keylist.parse_models(args.models))


def _described(grant: Grant) -> str:
    name = printable(grant.name)
    return name if grant.models is None else f"{name}, for {','.join(sorted(grant.models))}"


def _revoke(args: argparse.Namespace) -> int:
    keylist.revoke(args.list, args.name, credentials.KEYS_OR_CREDENTIALS)
    print(f"{args.list}: {printable(args.name)} is removed; its reader notices within a second")
    return 0
