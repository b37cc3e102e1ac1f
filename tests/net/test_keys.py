"""Key files, lists of keys, and their errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmq_offload.cli.main import main
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import authorize, parse_models, read_list, revoke
from zmq_offload.net.keys import check_key, new_keys, read_pair, read_public


def test_a_pair_is_two_files_and_the_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    public, secret = new_keys("edge", tmp_path / "keys")
    assert (public.name, secret.name) == ("edge.key", "edge.key_secret")
    assert secret.stat().st_mode & 0o077 == 0
    pair = read_pair(secret)
    assert read_public(public) == read_public(secret) == pair.public
    assert pair.secret != pair.public
    assert pair.secret.decode() not in public.read_text()


def test_a_pair_is_replaced_only_by_force(tmp_path: Path) -> None:
    new_keys("edge", tmp_path)
    with pytest.raises(AlreadyExists, match=r"edge\.key exists"):
        new_keys("edge", tmp_path)
    new_keys("edge", tmp_path, force=True)


def test_keys_are_added_and_removed(tmp_path: Path) -> None:
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
    with pytest.raises(NotFound, match="has no key named 'a'; it has b"):
        revoke(path, "a")


def test_comments_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text("# the doors\n\n" + "x" * 40 + " door\n")
    assert read_list(path) == {"x" * 40: Grant("door")}


@pytest.mark.parametrize(
    "line",
    [
        "short door",
        "x" * 40,
        "x" * 40 + " door models more",
        "x" * 40 + " door a/b",
        "x" * 40 + ' "the door',
        "x" * 40 + ' "" ocr',
        "x" * 40 + " door a,,b",
        "é" * 40 + " door",
        "%nSc1" * 8 + " door",
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "clients"
    path.write_text("# one\n" + line + "\n")
    with pytest.raises(FailedPrecondition, match="clients, line 2"):
        read_list(path)


def test_a_line_of_number_signs_is_a_comment(tmp_path: Path) -> None:
    """40 of them are as long as a key, but no key begins with this character."""
    path = tmp_path / "clients"
    path.write_text("#" * 40 + f"\n# the doors\n{'x' * 40} door\n#{'0' * 39} end\n")
    assert read_list(path) == {"x" * 40: Grant("door")}
    for digits in ("#0000", "#####"):
        with pytest.raises(InvalidArgument, match="the key is not 40 characters of Z85"):
            check_key("0" * 35 + digits)


@pytest.mark.parametrize("lines", [("door ocr", "door"), ("door", "door ocr"), ("door", "gate")])
def test_a_key_with_two_lines_that_differ_is_refused(tmp_path: Path, lines: tuple[str, str]) -> None:
    """The last line would win, and could grant all models, or outlive the revocation of the other name."""
    path = tmp_path / "clients"
    path.write_text("# the doors\n" + "".join(f"{'x' * 40} {line}\n" for line in lines))
    with pytest.raises(FailedPrecondition, match=r"clients, line 3: .* in line 2"):
        read_list(path)
    authorize(path, b"x" * 40, Grant("door"))
    assert read_list(path) == {"x" * 40: Grant("door")}
    path.write_text(f"{'x' * 40} door ocr,echo\n{'x' * 40}\tdoor echo,ocr\n")
    assert read_list(path) == {"x" * 40: Grant("door", frozenset({"ocr", "echo"}))}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["new", "", "--directory", "."], 1, "key name ''"),
        (["new", "a", "--directory", ""], 2, "'' is not a folder name (is a shell variable unset?)"),
        (["authorize", "", "--list", "l"], 2, "'' is not a file name (is a shell variable unset?)"),
        (["authorize", "none.key", "--list", "l"], 1, "none.key: No such file or directory"),
        (["authorize", ".", "--list", "l"], 2, "'.' is not a file name"),
        (["authorize", "text", "--list", "l"], 1, "text is not a key file; make one with `zmq-offload keys new NAME`"),
        (["authorize", "bytes", "--list", "l"], 1, "bytes is not a key file"),
        (["authorize", "a.key", "--list", ""], 2, "'' is not a file name (is a shell variable unset?)"),
        (["authorize", "a.key", "--list", "bytes"], 1, "bytes, line 2 is not UTF-8 text"),
        (["revoke", "Gate", "--list", "list"], 1, "did you mean 'gate'?"),
    ],
)
def test_errors_of_arguments_say_what_is_wrong(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    new_keys("a", tmp_path)
    Path("text").write_text("no key\n")
    Path("bytes").write_bytes(b"one\ntwo \xff\n")
    Path("list").write_text("x" * 40 + " gate\n")
    before = sorted(tmp_path.iterdir())
    try:
        found = main(["keys", *arguments])
    except SystemExit as end:
        found = int(str(end.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert (found, says in line) == (code, True), line
    assert sorted(tmp_path.iterdir()) == before


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
    assert "would lock out its users" in capsys.readouterr().err


def test_a_secret_that_is_replaced_is_not_readable_by_others(tmp_path: Path) -> None:
    _, secret = new_keys("edge", tmp_path)
    secret.chmod(0o644)
    new_keys("edge", tmp_path, force=True)
    assert secret.stat().st_mode & 0o777 == 0o600


EDITED = """# the camera at the gate; ask Ann before revoking
#no space after the sign

{a} gate ocr
   # indented,\u2028 with a separator of lines
{b}\tdoor   ocr,echo\r
"""


def test_an_edit_keeps_all_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    a, b, c = (read_public(new_keys(name, tmp_path)[0]) for name in "abc")
    before = EDITED.format(a=a.decode(), b=b.decode())
    path.write_bytes(before.encode())
    authorize(path, c, Grant("new"))
    assert path.read_bytes().decode() == before + f"{c.decode()} new\n"
    assert authorize(path, a, Grant("gate", frozenset({"echo"}))) == Grant("gate", frozenset({"ocr"}))
    assert path.read_bytes().decode() == before.replace("gate ocr", "gate echo") + f"{c.decode()} new\n"
    revoke(path, "gate")
    revoke(path, "new")
    assert path.read_bytes().decode() == before.replace(f"{a.decode()} gate ocr\n", "")


def test_a_list_that_does_not_end_with_a_line_end_gets_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text("x" * 40 + " door")
    authorize(path, b"y" * 40, Grant("gate"))
    assert list(read_list(path)) == ["x" * 40, "y" * 40]


def test_an_unreadable_list_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text("nonsense\n")
    for change in (lambda: authorize(path, b"y" * 40, Grant("gate")), lambda: revoke(path, "gate")):
        with pytest.raises(FailedPrecondition, match="line 1"):
            change()
    assert path.read_text() == "nonsense\n"
    assert [p.name for p in tmp_path.iterdir()] == ["clients"]


@pytest.mark.parametrize(
    "name", ["gate camera", "my gate camera", 'a "b" c', "# x", "#x", "a\nb", "é\u00a0\u2028", '"', "\\"]
)
def test_any_name_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clients"
    grant = Grant(name, frozenset({"ocr", "echo"}))
    authorize(path, b"x" * 40, grant)
    authorize(path, b"y" * 40, Grant("other"))
    assert read_list(path) == {"x" * 40: grant, "y" * 40: Grant("other")}
    revoke(path, name)
    assert read_list(path) == {"y" * 40: Grant("other")}


@pytest.mark.parametrize("text", ["", " ", ",", "a,", ",a", "a,,b", "a/b", "a,b c"])
def test_models_without_a_name_are_refused_and_grant_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="model"):
        parse_models(text)
    new_keys("edge", tmp_path)
    command = ["keys", "authorize", str(tmp_path / "edge.key"), "--list", str(tmp_path / "l"), "--models", text]
    assert main(command) == 1
    assert not (tmp_path / "l").exists()


def test_a_key_without_a_name_and_a_grant_of_no_model_are_refused(tmp_path: Path) -> None:
    public, _ = new_keys("edge", tmp_path)
    public.rename(tmp_path / ".key")
    assert main(["keys", "authorize", str(tmp_path / ".key"), "--list", str(tmp_path / "l")]) == 1
    with pytest.raises(InvalidArgument, match="the list of models is empty"):
        authorize(tmp_path / "l", b"x" * 40, Grant("edge", frozenset()))
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        authorize(tmp_path / "l", b"x" * 40, Grant("\udc80"))
    assert not (tmp_path / "l").exists()


def test_no_concurrent_change_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    alphabet = "abcdefghij"
    code = (
        "import sys; from pathlib import Path; from zmq_offload.net.grants import Grant\n"
        "from zmq_offload.net.keylist import authorize\n"
        "sys.stdin.read()\n"
        "for n in range(4): authorize(Path(sys.argv[1]), (sys.argv[2] * 39 + str(n)).encode(), Grant(sys.argv[2]))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(path), letter], stdin=subprocess.PIPE) for letter in alphabet
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0] * len(alphabet)
    assert len(read_list(path)) == 4 * len(alphabet)
    assert [p.name for p in tmp_path.iterdir()] == ["clients"], "no draft and no lock is left"


def test_an_edit_keeps_permissions_and_symbolic_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    authorize(real, b"x" * 40, Grant("a"))
    assert real.stat().st_mode & 0o777 == 0o644
    real.chmod(0o640)
    link.symlink_to("real")
    authorize(link, b"y" * 40, Grant("b"))
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert len(read_list(real)) == 2


def test_an_edit_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    authorize(path, b"x" * 40, Grant("a"))
    try:
        os.chown(path, 12345, 12346)
    except PermissionError:
        pytest.skip("only root may give a file away")
    authorize(path, b"y" * 40, Grant("b"))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_a_list_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, tmp_path / "no" / "where", Path("/dev/null")):
        with pytest.raises(FailedPrecondition, match=r"regular file|cannot be changed"):
            authorize(place, b"x" * 40, Grant("a"))
    assert Path("/dev/null").is_char_device()


def test_two_keys_that_are_not_a_pair_are_found(tmp_path: Path) -> None:
    (_, one), (two, _) = new_keys("one", tmp_path), new_keys("two", tmp_path)
    one.write_text(one.read_text().replace(read_public(one).decode(), read_public(two).decode()))
    with pytest.raises(FailedPrecondition, match="its two keys are not a pair"):
        read_pair(one)
