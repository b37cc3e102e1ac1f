"""Options that an Announce cannot carry are refused at the start, and not by every broker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from workers.config import parse
from workers.policy import MOST_SLOTS, WorkerPolicy
from workers.session import WorkerSession
from zmq_offload.artifacts.repository import Batching
from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire


def announced(name: str, slots: int) -> wire.Announce:
    message = wire.decode(wire.encode(wire.Announce(name, slots)), wire.FROM_WORKER)
    assert isinstance(message, wire.Announce)
    return message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--slots", str(MOST_SLOTS + 1)], f"from 1 to {MOST_SLOTS}"),
        (["--slots", "0"], f"from 1 to {MOST_SLOTS}"),
        (["--max-batch", str(MOST_SLOTS // 2 + 1)], f"from 1 to {MOST_SLOTS // 2}"),
        (["--name", "n" * (limits.NAME_BYTES + 1)], f"1 to {limits.NAME_BYTES} printable characters"),
        (["--name", "a\nb"], "printable characters"),
        (["--name", "\ud800"], "printable characters"),
    ],
)
def test_options_that_no_announce_can_carry_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_every_option_that_is_allowed_can_be_announced() -> None:
    config = parse(["--slots", str(MOST_SLOTS), "--name", "n" * limits.NAME_BYTES])
    assert announced(config.name, config.slots).slots == MOST_SLOTS
    with pytest.raises(ProtocolError):
        announced(config.name, MOST_SLOTS + 1)
    with pytest.raises(ProtocolError):
        announced(config.name + "n", 1)


def test_a_description_with_a_very_large_batch_does_not_make_the_announce_invalid() -> None:
    session = WorkerSession.open("w", 2, 1, WorkerPolicy(), 0.0)
    (send,) = session.announce([], {("m", 1): Batching(10**9)})
    assert isinstance(send.message, wire.Announce)  # type: ignore[union-attr]
    assert send.message.slots == MOST_SLOTS  # type: ignore[union-attr]


def test_a_supervisor_needs_no_tensors() -> None:
    """NumPy and libzmq would take 18 MB of each supervisor, and time before its workers start."""
    program = (
        "import sys, workers.config, workers.supervisor, zmq_offload.console.logs, zmq_offload.console.variables\n"
        "assert not {'numpy', 'zmq', 'tvm_ffi'} & sys.modules.keys()"
    )
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )
