"""Tokens and certificates in the list of a gateway, the commands that write it, and lists that change."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import ssl
from functools import partial
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from zmq_offload.cli.main import main
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.net.credentials import CREDENTIALS, check_entry, token_entry
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import read_list, revoke
from zmq_offload.net.watched import Watched

HASH = "0123456789abcdef" * 4


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "list"


def test_a_new_token_is_printed_once_and_only_its_hash_is_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for _ in range(2):
        assert main(["keys", "token", "phone", "--list", "list", "--models", "ocr,echo"]) == 0
        tokens.append(capsys.readouterr().out.removesuffix("\n"))
    assert len(set(tokens)) == 2 and all(len(token) > 40 for token in tokens)
    assert not any(token in path.read_text() for token in tokens)
    grant = Grant("phone", frozenset({"ocr", "echo"}))
    assert read_list(path, CREDENTIALS) == {token_entry(token): grant for token in tokens}


def test_a_token_from_elsewhere_is_read_from_standard_input(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "from-the-vault-of-secrets"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert main(["keys", "token", "phone", "--list", "list", "--stdin"]) == 0
    assert capsys.readouterr().out == ""
    assert read_list(path, CREDENTIALS) == {token_entry(token): Grant("phone")}


@pytest.mark.parametrize(
    ("token", "said"), [("short", "has 5 characters; use at least 20"), ("é" * 20, "of ASCII"), ("", "ASCII")]
)
def test_a_token_that_cannot_be_used_is_refused(
    path: Path, token: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert main(["keys", "token", "phone", "--list", "list", "--stdin"]) == 1
    assert said in capsys.readouterr().err
    assert not path.exists()


def test_certificates_are_authorized_by_file_or_name(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pem = Authority(path.parent).make("press").certificate.read_text()
    Path("press.crt").write_text(f"Certificate:\n    Data: é\n{pem}{pem}")
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert main(["keys", "certificate", "press.crt", "--list", "list", "--models", "ocr"]) == 0
    assert main(["keys", "certificate", "dns:gate.example", "--list", "list"]) == 0
    assert main(["keys", "certificate", "uri:spiffe://a/b", "--list", "list", "--name", "the gate"]) == 0
    assert capsys.readouterr().out.splitlines() == ["list: press, for ocr", "list: gate.example", "list: the gate"]
    assert read_list(path, CREDENTIALS) == {
        f"certificate:{fingerprint}": Grant("press", frozenset({"ocr"})),
        "dns:gate.example": Grant("gate.example"),
        "uri:spiffe://a/b": Grant("the gate"),
    }
    assert main(["keys", "certificate", "press.crt", "--list", "list"]) == 0
    assert capsys.readouterr().out == "list: press (was press, for ocr)\n"


def test_a_name_is_revoked_with_all_that_it_has(path: Path) -> None:
    for arguments in (["token", "press"], ["token", "press"], ["certificate", "cn:press"], ["token", "phone"]):
        assert main(["keys", *arguments, "--list", "list"]) == 0
    assert main(["keys", "revoke", "press", "--list", "list"]) == 0
    assert [grant.name for grant in read_list(path, CREDENTIALS).values()] == ["phone"]
    with pytest.raises(NotFound, match="has no credential named 'press'; it has phone"):
        revoke(path, "press", CREDENTIALS)


def test_keys_of_brokers_are_still_revoked(path: Path) -> None:
    path.write_text("x" * 40 + " a\n" + "dns:" + "x" * 36 + " b\n")
    for name in "ab":
        assert main(["keys", "revoke", name, "--list", "list"]) == 0
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "word",
    [f"token:{HASH}", f"certificate:{HASH}", "dns:a.example", "uri:https://A/b", "email:a@b", "cn:Ann"],
)
def test_an_entry_says_what_it_is(word: str) -> None:
    check_entry(word)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"token:{HASH.upper()}", "64 digits"),
        ("token:secret", "64 digits"),
        ("certificate:12:34", "64 digits"),
        ("dns:", "is not a token or a name of a certificate"),
        ("ip:10.0.0.1", "use one of token:"),
        ("zo_token", "use one of token:"),
        ("cn:the gate", "has a space; use another name"),
        ("dns:A.example", "use 'dns:a.example'"),
    ],
)
def test_another_word_is_refused(word: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        check_entry(word)


def test_a_key_of_a_broker_in_the_list_of_a_gateway_is_named(path: Path) -> None:
    path.write_text("# ours\n" + "x" * 40 + " a\n")
    with pytest.raises(FailedPrecondition, match=r"list, line 2: '.*' is not a token or a name of a certificate"):
        read_list(path, CREDENTIALS)


@pytest.mark.parametrize("body", ["!", "AAAA", "", None])
def test_a_file_that_is_no_certificate_is_named(
    path: Path, body: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if body is not None:
        Path("a.crt").write_text(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n" if body else body)
    assert main(["keys", "certificate", "a.crt", "--list", "list"]) == 1
    assert "a.crt" in capsys.readouterr().err
    assert not path.exists()


def test_a_list_that_cannot_be_read_keeps_its_entries(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the change is seen as soon as it can be read."""
    path.write_text("cn:a a\n")
    log = logging.getLogger("gateway")
    watched = Watched((str(path),), partial(read_list, path, CREDENTIALS), log, "the clients stay as they were")
    assert not watched.reload()
    path.write_text("nonsense\n")
    assert not watched.reload() and not watched.reload()
    path.unlink()
    assert not watched.reload()
    assert list(watched.value) == ["cn:a"]
    assert [record.message.endswith("; the clients stay as they were") for record in caplog.records] == [True, True]
    path.write_text("cn:b b\n")
    assert watched.reload() and list(watched.value) == ["cn:b"]
    other = path.with_name("other")
    other.write_text("cn:c c\n")
    os.replace(other, path)
    assert watched.reload() and list(watched.value) == ["cn:c"]


def test_a_list_must_be_readable_at_the_start(path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="list: No such file"):
        Watched((str(path),), partial(read_list, path, CREDENTIALS), logging.getLogger("gateway"), "")
