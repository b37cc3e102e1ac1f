"""The examples of docs/protocols.md do what they say, and its table of methods is that of the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import ROOT, Gateway, running_broker, running_gateway, running_workers, wait_for_workers
from tests.support.triton_clients import CALLS, KINDS, NOT_HERE, methods

PAGE = (ROOT / "docs/protocols.md").read_text()
BLOCKS: list[tuple[str, str, str]] = re.findall(r"```(sh|python)\n(.*?)```(?:\n\n```json\n(.*?)```)?", PAGE, re.S)
"""Language and text of each example, and the JSON that follows it."""

CURL = [(text, answer) for language, text, answer in BLOCKS if language == "sh" and text.startswith("curl ")]
PYTHON = [text for language, text, _ in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo"):
        wait_for_workers(broker.frontend, 1)
        with running_gateway(broker.frontend) as running:
            yield running


def here(text: str, gateway: Gateway) -> str:
    """An example for the ports of this gateway."""
    return text.replace("127.0.0.1:8000", gateway.http).replace("127.0.0.1:8001", gateway.grpc)


def run(command: list[str]) -> str:
    environment = os.environ | {"GRPC_VERBOSITY": "NONE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_examples() -> None:
    assert len(CURL) >= 5 and all(answer for _, answer in CURL) and len(PYTHON) >= 3


@pytest.mark.parametrize(("text", "answer"), CURL)
def test_curl(gateway: Gateway, text: str, answer: str) -> None:
    assert json.loads(run(["bash", "-c", here(text, gateway)])) == json.loads(answer)


@pytest.mark.parametrize("text", PYTHON)
def test_python(gateway: Gateway, text: str) -> None:
    assert "1. 2. 3." in run([sys.executable, "-c", here(text, gateway)])


def test_the_table_of_methods() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S[^|]*) \| (\S[^|]*) \| (\S[^|]*) \| (\S[^|]*) \|", PAGE, re.M)
    shown = {name: tuple(cells) for name, *cells in rows}
    wanted = {
        name: tuple(("not here" if name in NOT_HERE else "works") if name in methods(kind) else "-" for kind in KINDS)
        for name in CALLS
    }
    assert shown == wanted
