"""Changes of `config.toml`: what is served and labeled, with comments kept and nothing half-written."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts.test_repository import build
from zmq_offload.artifacts import configedit
from zmq_offload.artifacts.config import read
from zmq_offload.artifacts.repository import Repository
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path)
    for version in (1, 2, 3):
        repository.write("m", version, lambda folder, v=version: build(folder, version=v))
    return repository


def text_of(repository: Repository) -> str:
    return (repository.root / "m" / "config.toml").read_text()


def served(repository: Repository) -> list[int]:
    return read(repository.root / "m").serves(repository.versions("m"))


def test_a_model_is_unloaded_and_loaded(repository: Repository) -> None:
    configedit.unload(repository, "m")
    assert (text_of(repository), served(repository)) == ("unloaded = true\n", [])
    configedit.load(repository, "m")
    assert (text_of(repository), served(repository)) == ("", [1, 2, 3])


def test_a_model_is_served_again_as_before_it_was_unloaded(repository: Repository) -> None:
    file, text = repository.root / "m" / "config.toml", "versions = { latest = 1 }\n\n[labels]\nstable = 2\n"
    file.write_text(text)
    for _ in range(2):
        configedit.unload(repository, "m")
        assert served(repository) == []
    configedit.load(repository, "m")
    assert (served(repository), "latest = 1" in text_of(repository)) == ([2, 3], True)
    configedit.load(repository, "m")
    assert served(repository) == [1, 2, 3], "and then all"
    for empty in ("versions = []", "versions = []\nunloaded = true"):
        file.write_text(empty)
        configedit.load(repository, "m")
        assert served(repository) == [1, 2, 3]


def test_versions_are_unloaded_and_loaded_one_by_one(repository: Repository) -> None:
    configedit.unload(repository, "m", 2)
    assert served(repository) == [1, 3]
    configedit.load(repository, "m", 2)
    assert served(repository) == [1, 2, 3]
    configedit.unload(repository, "m")
    configedit.load(repository, "m", 3)
    assert served(repository) == [3]


def test_a_version_that_is_served_already_changes_nothing(repository: Repository) -> None:
    (repository.root / "m" / "config.toml").write_text("versions = { latest = 2 }\n")
    configedit.load(repository, "m", 3)
    assert text_of(repository) == "versions = { latest = 2 }\n"


def test_comments_order_and_mode_stay(repository: Repository) -> None:
    file = repository.root / "m" / "config.toml"
    file.write_text("# ours\ninstances = 2  # two\n\n[labels]\nstable = 1  # since May\n")
    file.chmod(0o640)
    configedit.label(repository, "m", "next", 3)
    configedit.label(repository, "m", "stable", 2)
    assert text_of(repository).startswith("# ours\ninstances = 2  # two\n")
    assert "# since May" in text_of(repository)
    assert read(repository.root / "m").labels == {"stable": 2, "next": 3}
    assert file.stat().st_mode & 0o777 == 0o640
    configedit.label(repository, "m", "stable", None)
    assert read(repository.root / "m").labels == {"next": 3}
    assert sorted(p.name for p in file.parent.iterdir()) == ["1", "2", "3", "config.toml"]


def test_what_is_not_there_is_named(repository: Repository) -> None:
    with pytest.raises(NotFound, match="there is no model 'n'; its models: m"):
        configedit.load(repository, "n")
    with pytest.raises(NotFound, match="model 'm' has no version 7; its versions: 1, 2, 3"):
        configedit.unload(repository, "m", 7)
    with pytest.raises(NotFound, match="model 'm' has no label 'x'; its labels: none"):
        configedit.label(repository, "m", "x", None)
    with pytest.raises(InvalidArgument, match="label 'a b' is not"):
        configedit.label(repository, "m", "a b", 1)
    configedit.unload(repository, "m", 2)
    with pytest.raises(
        FailedPrecondition, match=r"version 2 is not served: config.toml does not list it; load it first"
    ):
        configedit.label(repository, "m", "x", 2)


def test_a_file_that_is_wrong_or_json_is_left_as_it_is(repository: Repository) -> None:
    file = repository.root / "m" / "config.toml"
    file.write_text("instances = 0\n")
    with pytest.raises(FailedPrecondition, match=r"config.toml: instances is 0; expected int >= 1"):
        configedit.load(repository, "m", 1)
    assert text_of(repository) == "instances = 0\n"
    file.unlink()
    (file.parent / "config.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"config.json can only be changed by hand"):
        configedit.unload(repository, "m")


def test_a_change_that_would_be_wrong_is_not_written(repository: Repository) -> None:
    labels = "\n".join(f"l{number} = 1" for number in range(64))
    (repository.root / "m" / "config.toml").write_text(f"[labels]\n{labels}\n")
    with pytest.raises(FailedPrecondition, match=r"config.toml would be wrong: labels has 65 labels"):
        configedit.label(repository, "m", "one_more", 1)
    assert "one_more" not in text_of(repository)


def test_a_folder_that_cannot_be_written_is_named(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(FailedPrecondition, match=r"config.toml cannot be written: Permission denied"):
        configedit.unload(repository, "m")
    assert sorted(p.name for p in (repository.root / "m").iterdir()) == ["1", "2", "3"]


def test_changes_by_several_processes_are_all_kept(repository: Repository) -> None:
    code = (
        "import sys; from pathlib import Path; from zmq_offload.artifacts import configedit\n"
        "from zmq_offload.artifacts.repository import Repository\n"
        "repository, name = Repository(Path(sys.argv[1])), sys.argv[2]\n"
        "for number in range(20): configedit.label(repository, 'm', f'{name}-{number}', 1)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, repository.root, name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    expected = {f"{name}-{number}" for name in ("a", "b") for number in range(20)}
    assert read(repository.root / "m").labels.keys() == expected


def test_a_file_is_utf_8_in_every_locale_and_keeps_its_line_ends(repository: Repository) -> None:
    file = repository.root / "m" / "config.toml"
    file.write_bytes("# für Gäste\r\npriority = 1\r\n".encode())
    code = (
        "import sys; from pathlib import Path; from zmq_offload.artifacts import configedit\n"
        "from zmq_offload.artifacts.repository import Repository\n"
        "configedit.unload(Repository(Path(sys.argv[1])), 'm', 3)"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, repository.root], env=plain, check=True, timeout=60)
    assert file.read_bytes().startswith("# für Gäste\r\npriority = 1\r\n".encode())
    assert served(repository) == [1, 2]


def test_a_file_with_a_byte_order_mark_can_be_changed(repository: Repository) -> None:
    (repository.root / "m" / "config.toml").write_bytes(b"\xef\xbb\xbf# ours\npriority = 3\n")
    configedit.label(repository, "m", "stable", 2)
    assert text_of(repository) == "# ours\npriority = 3\n\n[labels]\nstable = 2\n"
    assert read(repository.root / "m").labels == {"stable": 2}


def test_a_program_that_holds_a_file_for_long_and_one_that_was_killed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository.root / "m"
    left, fresh = folder / ".config-left", folder / ".config-fresh"
    left.touch()
    fresh.touch()
    os.utime(left, (0, 0))
    monkeypatch.setattr(configedit, "_PATIENCE", 0.05)
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(FailedPrecondition, match=r"m: another program has been changing config\.toml for 0\.05 s; see"):
        configedit.unload(repository, "m")
    assert not (folder / "config.toml").exists() and left.exists()
    os.close(other)
    configedit.unload(repository, "m")
    assert (served(repository), left.exists(), fresh.exists()) == ([], False, True)
