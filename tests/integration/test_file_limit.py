"""A program raises its limit of open files, or says why it cannot."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

CODE = """
import logging, resource, sys
from zmq_offload.common.open_files import raise_file_limit
logging.basicConfig(format="%(message)s")
hard = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
connections = raise_file_limit(logging.getLogger())
print(connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limited(hard: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, str(hard)], cwd=ROOT, capture_output=True, text=True, check=True)


def test_a_low_soft_limit_is_raised_to_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip(f"the hard limit is {hard} here")
    ran = limited(8192)
    assert ran.stdout.split() == [str(8192 - 64), "8192"] and ran.stderr == ""


def test_a_low_hard_limit_is_one_clear_line() -> None:
    ran = limited(512)
    assert ran.stdout.split()[1] == "512"
    assert ran.stderr.startswith("at most 448 connections: this process may have 512 files open; raise the hard limit")
    assert len(ran.stderr.splitlines()) == 1
