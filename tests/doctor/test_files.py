"""What the doctor makes of keys, lists, certificates and repositories."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from zmq_offload.doctor.checks.files import (
    Certificate,
    KeyFile,
    KeyList,
    RepositoryFacts,
    Version,
    check_certificate,
    check_keys,
    check_repository,
)
from zmq_offload.doctor.checks.findings import Finding, Level
from zmq_offload.doctor.facts import files
from zmq_offload.net.grants import Grant
from zmq_offload.net.keylist import authorize
from zmq_offload.net.keys import new_keys, read_public

DAY = 86400.0


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(f.level.value, f.text, f.remedy) for f in findings if f.level not in (Level.OK, Level.NOTE)]


def test_keys_that_fit(tmp_path: Path) -> None:
    public, secret = new_keys("broker", tmp_path)
    mine, own = new_keys("camera", tmp_path)
    authorize(tmp_path / "clients", read_public(mine), Grant("camera"))
    findings = check_keys(
        [
            files.key_file("--server-key", str(secret), secret=True),
            files.key_file("--broker-key", str(public), secret=False),
            files.key_file("--client-key", str(own), secret=True),
        ],
        [files.key_list("--authorized-clients", str(tmp_path / "clients"))],
    )
    assert not bad(findings) and findings[-1].text == "--authorized-clients: 1 key"


def test_keys_that_do_not_fit(tmp_path: Path) -> None:
    _, secret = new_keys("broker", tmp_path)
    other, own = new_keys("other", tmp_path)
    (tmp_path / "clients").write_text("")
    secret.chmod(0o640)
    own.chmod(0o604)
    authorize(tmp_path / "workers", read_public(secret), Grant("broker"))
    findings = check_keys(
        [
            files.key_file("--server-key", str(secret), secret=True),
            files.key_file("--broker-key", str(other), secret=False),
            files.key_file("--client-key", str(own), secret=True),
            files.key_file("--worker-key", str(other), secret=True),
        ],
        [
            files.key_list("--authorized-clients", str(tmp_path / "clients")),
            files.key_list("--authorized-workers", str(tmp_path / "workers")),
            files.key_list("--access-list", str(tmp_path / "none")),
        ],
    )
    assert bad(findings) == [
        ("warning", f"--server-key: {secret} is a secret, and its group may use it (mode 0640)", f"chmod 600 {secret}"),
        ("fail", f"--client-key: {own} is a secret, and all users may use it (mode 0604)", f"chmod 600 {own}"),
        ("fail", f"--worker-key: {other} has no secret key; use the file that ends in .key_secret",
         "name the right file, or make a pair: zmq-offload keys new NAME"),
        ("warning", f"--authorized-clients: {tmp_path}/clients has no key, so nobody may connect",
         f"add one: zmq-offload keys authorize NAME.key --list {tmp_path}/clients"),
        ("fail", f"--access-list: {tmp_path}/none: No such file or directory",
         "correct the line, or make the list anew by `zmq-offload keys authorize`"),
        ("fail", f"--broker-key: {other} is not the public key of --server-key {secret}",
         f"give peers {tmp_path}/broker.key as the broker's key"),
        ("fail", f"--client-key: the public key of {own} is not in --authorized-clients {tmp_path}/clients",
         f"zmq-offload keys authorize {other} --list {tmp_path}/clients"),
    ]  # fmt: skip


def test_no_keys_are_only_noted() -> None:
    assert check_keys([], [])[0].level is Level.NOTE
    (finding,) = check_keys([], [KeyList("--access-list", "l", "")])
    assert "l has no credential" in finding.text
    worker = KeyFile("--worker-key", "w.key_secret", "", "p", True)
    assert not bad(check_keys([worker], [KeyList("--authorized-workers", "l", "", {"p": "w"})]))


@pytest.mark.parametrize(
    ("facts", "level", "text", "remedy"),
    [
        (Certificate("c", "c is broken"), Level.FAIL, "c is broken", "--tls-cert and --tls-key"),
        (Certificate("c", ""), Level.NOTE, "cannot be read", ""),
        (Certificate("c", "", 0.0, 30 * DAY, "k"), Level.OK, "c is valid for 20 days", ""),
        (Certificate("c", "", 0.0, 15 * DAY, "k"), Level.WARNING, "c expires in 5.0 days", "renew it"),
        (Certificate("c", "", 0.0, 9 * DAY), Level.FAIL, "c expired 1.0 days ago", "renew it"),
        (Certificate("c", "", 12 * DAY, 90 * DAY), Level.FAIL, "not valid yet, for 2.0 days", "date"),
    ],
)
def test_certificates(facts: Certificate, level: Level, text: str, remedy: str) -> None:
    finding = check_certificate(facts, 10 * DAY)[-1]
    assert finding.level is level and text in finding.text and remedy in finding.remedy


def test_real_certificates_are_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, late = authority.make("good"), authority.make("late", days=-1)
    now = time.time()
    assert check_certificate(files.certificate(*map(str, good)), now)[-1].text.endswith("is valid for 30 days")
    assert "late.crt expired " in check_certificate(files.certificate(*map(str, late)), now)[-1].text
    wrong = files.certificate(str(good.certificate), str(late.key))
    assert wrong.error == f"{late.key} is not the key of the certificate in {good.certificate}"
    assert files.certificate(str(tmp_path / "x"), "y").error == f"{tmp_path}/x: No such file or directory"
    nothing = tmp_path / "nothing"
    nothing.write_text("nothing")
    assert "not a certificate and its key in PEM" in files.certificate(str(nothing), str(good.key)).error


GOOD = Version("m:1", "", "0.27.0")


@pytest.mark.parametrize(
    ("facts", "tvm", "level", "text", "remedy"),
    [
        (RepositoryFacts("r", "r does not exist"), "0.27.0", "fail", "r does not exist", "zmq-offload compile"),
        (RepositoryFacts("r", ""), "0.27.0", "warning", "r has no version of a model", "zmq-offload compile MODEL"),
        (RepositoryFacts("r", "", [GOOD]), "", "fail", "1 version in r, and TVM is not", "zmq-offload[tvm]"),
        (RepositoryFacts("r", "", [GOOD]), "0.28.0", "fail", "m:1 was built by TVM 0.27.0", "compile it again"),
        (RepositoryFacts("r", "", [Version("m:1", "x is damaged")]), "0.27.0", "fail", "x is damaged", "copy it again"),
        (RepositoryFacts("r", "", [GOOD._replace(cpu="m:1 was built for avx512f; compile it with --target")]), "0.27.0",
         "fail", "m:1 was built for avx512f", "compile it with --target"),
        (RepositoryFacts("r", "", [GOOD], ["a b"]), "0.27.0", "warning", "a b in r cannot be", "rename the folder"),
        (RepositoryFacts("r", "", [GOOD], [], ["m/config.toml: wrong"]), "0.27.0", "fail", "m/config.toml: wrong",
         "correct the file"),
    ],
)  # fmt: skip
def test_repositories(facts: RepositoryFacts, tvm: str, level: str, text: str, remedy: str) -> None:
    ((found, said, todo),) = bad(check_repository(facts, tvm))
    assert found == level and text in said and remedy in todo


def test_a_good_repository() -> None:
    (finding,) = check_repository(RepositoryFacts("r", "", [GOOD]), "0.27.0")
    assert (finding.level, finding.text) == (Level.OK, "r: m:1")


def test_a_real_repository_is_read(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.toml").write_text("versoins = 1")
    (tmp_path / "a b").mkdir()
    facts = files.repository(str(tmp_path))
    assert [version.name for version in facts.versions] == ["m:1"] and "model.json" in facts.versions[0].error
    assert list(facts.strays) == ["a b"] and "did you mean 'versions'" in facts.configs[0]
    assert files.repository(str(tmp_path / "none")).error == f"{tmp_path}/none does not exist"
    assert files.repository(__file__).error == f"{__file__} is not a folder"
