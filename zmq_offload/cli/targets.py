"""`zmq-offload compile --list-targets`: the boards that a target can name."""

from __future__ import annotations

import argparse

from zmq_offload.compile.boards import BOARDS, HOST
from zmq_offload.console.tables import Column, Part, Table, show


class ListTargets(argparse.Action):
    """Show the table and exit, without a model."""

    only_argument = True

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        show(table())
        parser.exit()


def table() -> Part:
    """The names, what they are, LLVM's name of the CPU, its features, and the cores that compute."""
    columns = (Column("TARGET"), Column("MACHINE"), Column("CPU"), Column("FEATURES", folds=True), Column("CORES"))
    boards = [
        (b.name, b.title, b.cpu, " ".join(b.features), "" if b.cores is None else str(b.cores)) for b in BOARDS.values()
    ]
    return Table(columns, [(HOST, "this machine", "", "", ""), *boards])
