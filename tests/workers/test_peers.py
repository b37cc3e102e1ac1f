"""Supervisors on one machine know of each other, until they end, however they end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workers.cores import Peer
from workers.peers import Peers

OTHER = """
import sys, time
from pathlib import Path
from workers.peers import Peers
peers = Peers([0, 1], 3, Path(sys.argv[1]))
peers.hold([(0,), (1,)])
print("there", flush=True)
time.sleep(600)
"""


def test_each_sees_the_others_in_the_order_of_their_starts(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    first, second = Peers([0, 1], 1, folder), Peers([0, 1, 2], 2, folder)
    second.hold([(2,)])
    assert first.look() == ([], [Peer((0, 1, 2), 2, ((2,),))])
    assert second.look() == ([Peer((0, 1), 1)], [])
    second.close()
    assert first.look() == ([], [])
    first.close()
    assert list(folder.iterdir()) == []


def test_a_supervisor_that_was_killed_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    mine = Peers([0, 1], 1, folder)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"there\n"
        assert mine.look() == ([], [Peer((0, 1), 3, ((0,), (1,)))])
        other.kill()
    assert mine.look() == ([], [])
    assert len(list(folder.iterdir())) == 1
    mine.close()


@pytest.mark.parametrize("kind", ["file", "link", "open to others", "missing parent"])
def test_a_folder_that_cannot_be_trusted_or_made_is_not_used_and_named(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    if kind == "file":
        folder.write_text("")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder = tmp_path / "missing" / "shared"
    peers = Peers([0, 1], 1, folder)
    assert peers.look() == ([], [])
    peers.hold([(0,)])
    peers.close()
    (record,) = caplog.records
    assert str(folder) in record.getMessage()


def test_files_of_another_release_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    mine, other = Peers([0, 1], 1, folder), Peers([0, 1], 1, folder)
    for text in ("", "[]", "{}", '{"cores": 1, "processes": 1, "held": []}', "\xff"):
        assert other._file is not None
        other._file.write_text(text)
        assert mine.look() == ([], [])
    other.close()
    mine.close()


def test_a_supervisor_assumes_that_it_is_alone_if_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container with a read-only root file system and no /tmp."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    peers = Peers([0, 1], 1)
    assert peers.look() == ([], [])
    peers.hold([(0,)])
    peers.close()
    assert "cores are not shared with other supervisors" in caplog.text and "No usable" in caplog.text
