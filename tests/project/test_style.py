"""Style and types as tests, so that one command checks everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check --diff", "mypy"])
def test_the_code_passes(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    marker = "<!-- .ci/run runs the command below -->\n```sh\n"
    _, found, rest = (ROOT / "README.md").read_text().partition(marker)
    assert found
    command = rest.splitlines()[0]
    assert ".venv/bin/python -m pytest" in command
    assert rest.splitlines()[1] == "```"
