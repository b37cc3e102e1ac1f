"""Folders for work in progress: when they stay, when they are removed, and by which process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmq_offload.common.scratch import folders_made, put_in_place, remove_live, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from zmq_offload.common.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), ".work-") as folder:
    (folder / "half").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def holding(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_folder_of_a_live_process_stays_and_that_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        try:
            with scratch_folder(tmp_path, ".work-") as own:
                assert own != folder
                assert (folder / "half").exists()
            assert not own.exists()
            assert (folder / "half").exists()
        finally:
            other.kill()
            other.wait()
        assert folder.exists()
        with scratch_folder(tmp_path, ".other-"):
            assert folder.exists()
        with scratch_folder(tmp_path, ".work-") as own:
            assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_is_removed_after_a_failure_and_at_a_sudden_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), scratch_folder(tmp_path, ".work-"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    with scratch_folder(tmp_path, ".work-") as folder:
        (folder / "half").touch()
        remove_live()
        assert not folder.exists()


def test_a_symbolic_link_with_the_prefix_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    place = tmp_path / "place"
    place.mkdir()
    (place / ".work-link").symlink_to(tmp_path / "precious")
    with scratch_folder(place, ".work-"):
        pass
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    (place / "old").mkdir(parents=True)
    with scratch_folder(tmp_path, ".work-") as scratch:
        (scratch / "new").mkdir()
        rename = Path.rename

        def failing(self: Path, target: Path) -> Path:
            if self.name == "new":
                raise OSError(28, "No space left on device")
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", failing)
            with pytest.raises(OSError, match="No space left"):
                put_in_place(scratch / "new", place)
        assert (place / "old").exists()
        put_in_place(scratch / "new", place)
    assert list(place.iterdir()) == []
    assert list(tmp_path.iterdir()) == [place]


def test_folders_made_in_vain_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    folders = tmp_path / "mine" / "a" / "b", tmp_path / "c", tmp_path / "mine"
    with pytest.raises(ValueError, match="no"), folders_made(*folders):  # noqa: PT012
        assert all(folder.is_dir() for folder in folders)
        (tmp_path / "c" / "file").touch()
        raise ValueError("no")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "file", "mine"]
    with folders_made(*folders):
        pass
    assert folders[0].is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), folders_made(tmp_path / "d", tmp_path / "file" / "e"):
        pass
    assert not (tmp_path / "d").exists()
