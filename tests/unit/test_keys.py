"""Key files, lists of keys, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zmq_offload.cli import main
from zmq_offload.errors import AlreadyExists, FailedPrecondition, NotFound
from zmq_offload.grants import Grant
from zmq_offload.keys import authorize, new_keys, read_list, read_pair, read_public, revoke


def test_a_pair_is_two_files_and_the_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    public, secret = new_keys("edge", tmp_path / "keys")
    assert (public.name, secret.name) == ("edge.key", "edge.key_secret")
    assert secret.stat().st_mode & 0o077 == 0
    pair = read_pair(secret)
    assert read_public(public) == read_public(secret) == pair.public
    assert pair.secret != pair.public
    assert pair.secret.decode() not in public.read_text()


def test_a_pair_is_not_replaced_unless_it_is_meant(tmp_path: Path) -> None:
    new_keys("edge", tmp_path)
    with pytest.raises(AlreadyExists, match=r"edge\.key exists"):
        new_keys("edge", tmp_path)
    new_keys("edge", tmp_path, force=True)


def test_lists_are_added_to_and_taken_from(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    keys = {}
    for name in ("a", "b"):
        keys[name] = read_public(new_keys(name, tmp_path)[0])
        authorize(path, keys[name], Grant(name, frozenset({"ocr", "echo"}) if name == "b" else None))
    grants = read_list(path)
    assert grants == {keys["a"].decode(): Grant("a"), keys["b"].decode(): Grant("b", frozenset({"echo", "ocr"}))}
    assert grants[keys["b"].decode()].allows("ocr") and not grants[keys["b"].decode()].allows("other")
    revoke(path, "a")
    assert list(read_list(path)) == [keys["b"].decode()]
    with pytest.raises(NotFound, match="has no key of 'a'; it has b"):
        revoke(path, "a")


def test_comments_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text("# the doors\n\n" + "x" * 40 + " door\n")
    assert read_list(path) == {"x" * 40: Grant("door")}


@pytest.mark.parametrize("line", ["short door", "x" * 40, "x" * 40 + " door models more", "x" * 40 + " door a/b"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "clients"
    path.write_text("# one\n" + line + "\n")
    with pytest.raises(FailedPrecondition, match="clients, line 2"):
        read_list(path)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    public, _ = new_keys("edge", tmp_path)
    with pytest.raises(FailedPrecondition, match=r"edge\.key has no secret key"):
        read_pair(public)
    with pytest.raises(FailedPrecondition, match="nothing"):
        read_public(tmp_path / "nothing")
    public.write_text('curve\n    public-key = "abc"\n')
    with pytest.raises(FailedPrecondition, match="damaged"):
        read_public(public)
    with pytest.raises(FailedPrecondition, match="nothing"):
        read_list(tmp_path / "nothing")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "edge", "--directory", str(tmp_path)]) == 0
    assert main(["keys", "authorize", str(tmp_path / "edge.key"), "--list", str(tmp_path / "l"), "--models", "m"]) == 0
    assert "edge, for m" in capsys.readouterr().out
    assert main(["keys", "revoke", "edge", "--list", str(tmp_path / "l")]) == 0
    assert main(["keys", "new", "edge", "--directory", str(tmp_path)]) == 1
    assert "would be locked out" in capsys.readouterr().err


def test_a_secret_that_is_replaced_is_not_readable_by_others(tmp_path: Path) -> None:
    _, secret = new_keys("edge", tmp_path)
    secret.chmod(0o644)
    new_keys("edge", tmp_path, force=True)
    assert secret.stat().st_mode & 0o777 == 0o600
