"""`config.toml` of a model: what it may say, and what is said of one that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmq_offload.artifacts import configreader
from zmq_offload.artifacts.config import NO_CONFIG, Canary, Latest, ModelConfig, WarmUp, parse, read
from zmq_offload.artifacts.configreader import ConfigReader
from zmq_offload.artifacts.repository import Batching
from zmq_offload.errors import FailedPrecondition, InvalidArgument

FULL = """
versions = [3, 4]
instances = 2
timeout = 2.5
priority = -10
labels = { stable = 3, current = 3, next = 4 }

[batching]
max_batch = 8
delay_us = 500

[warmup]
runs = 3
inputs = "random"

[queue]
max_queued = 64

[cache]
seconds = 30

[canary]
version = 4
share = 0.1
"""


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbfpriority = 3\r\n").priority == 3


def test_every_key_can_be_given() -> None:
    config = parse(FULL.encode())
    assert (config.versions, config.instances, config.timeout, config.priority) == ((3, 4), 2, 2.5, -10)
    assert config.labels == {"stable": 3, "current": 3, "next": 4}
    assert (config.batching, config.warmup, config.canary) == (
        Batching(8, 500),
        WarmUp(3, "random"),
        Canary(4, 0.1, 100, 0.02, 1.5, 60.0),
    )
    assert config.queue is not None and config.cache is not None
    assert (config.queue.max_queued, config.cache.seconds) == (64, 30.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('versions = "some"', """versions is 'some'; expected "all", {latest = N}, or a list of version numbers"""),
        ("versions = 3", """versions is 3; expected "all", {latest = N}, or a list of version numbers"""),
        ("versions = { latest = 0 }", r"versions.latest is 0; expected int >= 1"),
        ("versions = [0]", r"versions\[0\] is 0; expected int >= 1"),
        ("verions = 1", "key 'verions' is not known; did you mean 'versions'?"),
        ("zzz = 1", "key 'zzz' is not known; known are versions, unloaded, instances"),
        ("timeout = nan", "timeout is nan; expected float > 0.0"),
        ("timeout = inf", "timeout is inf; expected float <= 86400.0"),
        ("priority = 101", "priority is 101; expected int <= 100"),
        ("instances = 0", "instances is 0; expected int >= 1"),
        ('[labels]\n"a b" = 1', "label 'a b' is not 1 to 128 letters"),
        ('[labels]\na = 1\nx = "1"', "label 'x' is '1'; expected the number of a version"),
        ("priority = 0x" + "f" * 5000, "it has a number with thousands of digits"),
        ("canary = 1", "canary is 1; expected a table$"),
        ("[[warmup]]", "warmup is .*; expected a table$"),
        ("[labels]\nx = 0", "label 'x' is 0; expected the number of a version"),
        ("[batching]\nmax_batch = 0", "max_batch 0 is not a whole number of rows from 1"),
        (
            '[warmup]\ninputs = "../x.npz"',
            r"inputs is '../x.npz'; expected ones, zeros, random, or the name of an .npz",
        ),
        ("[queue]\nmax_queued = 0", "queue.max_queued is 0; expected int >= 1"),
        ("[cache]\nseconds = nan", "cache.seconds is nan; expected float > 0.0"),
        ("[canary]\nversion = 4", "canary: key 'share' is missing"),
        ("[canary]\nversion = 4\nshare = 2", "canary.share is 2; expected float <= 1.0"),
        ("[canary]\nversion = 4\nshare = 0.5\nwindw = 3", "canary: key 'windw' is not known"),
        ("a = [", "it is not TOML: "),
        ("a = " + "[" * 5000, "it is not TOML: "),
        ("versions = [" + "1," * 1001 + "]", "versions lists 1001 versions; at most 1000"),
        ("[labels]\n" + "".join(f"l{i} = 1\n" for i in range(65)), "labels has 65 labels; a model has at most 64"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse(text.encode())


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="it is not UTF-8: byte 1"):
        parse(b"a\xff")


@pytest.mark.parametrize(
    ("versions", "served"),
    [("all", [1, 2, 4]), (Latest(2), [2, 4]), (Latest(9), [1, 2, 4]), ((4, 1, 3), [1, 4]), ((), [])],
)
def test_the_versions_to_serve(versions: object, served: list[int]) -> None:
    assert ModelConfig(versions=versions).serves([4, 1, 2]) == served  # type: ignore[arg-type]


def test_a_new_version_does_not_push_out_what_labels_and_the_canary_name() -> None:
    text = "versions = { latest = 1 }\nlabels = { stable = 2, gone = 9 }\n[canary]\nversion = 3\nshare = 0.5"
    assert parse(text.encode()).serves([1, 2, 3, 4, 5]) == [2, 3, 5]


def test_what_brokers_must_know() -> None:
    config = parse(FULL.encode())
    assert config.announced(3, "sha256:1") == {
        "labels": ["current", "stable"],
        "timeout_us": 2_500_000,
        "priority": -10,
        "max_queued": 64,
        "cache": {"seconds": 30.0, "build": "sha256:1"},
        "canary": {
            "version": 4,
            "share": 0.1,
            "min_requests": 100,
            "error_margin": 0.02,
            "latency_ratio": 1.5,
            "window": 60.0,
        },
    }
    assert config.announced(4, "")["labels"] == ["next"]
    assert NO_CONFIG.announced(1, "sha256:1") == {}
    assert parse(b"[canary]\nversion = 2\nshare = 0").announced(1, "")["canary"]["share"] == 0


def test_a_file_is_read_and_named_if_it_is_wrong(tmp_path: Path) -> None:
    assert read(tmp_path) is NO_CONFIG
    (tmp_path / "config.json").write_text('{"instances": 1}')
    assert read(tmp_path).instances == 1
    (tmp_path / "config.toml").write_text("instances = 2")
    with pytest.raises(FailedPrecondition, match=r"config.json: there is a config.toml, too; remove one of the two"):
        read(tmp_path)
    (tmp_path / "config.json").unlink()
    assert read(tmp_path).instances == 2
    (tmp_path / "config.toml").write_text("instances = 0")
    with pytest.raises(FailedPrecondition, match=rf"{tmp_path}/config.toml: instances is 0; expected int >= 1"):
        read(tmp_path)
    (tmp_path / "config.toml").write_text("#" * 300_000)
    with pytest.raises(FailedPrecondition, match="over 262144 bytes"):
        read(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(FailedPrecondition, match=r"config.toml: Is a directory"):
        read(tmp_path)


def test_a_link_to_nothing_and_a_pipe_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.symlink_to(tmp_path / "gone.toml")
    with pytest.raises(FailedPrecondition, match=r"config\.toml: No such file or directory"):
        read(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FailedPrecondition, match=r"config\.toml: it is a pipe; expected a file"):
        read(tmp_path)


def test_a_folder_that_cannot_be_looked_into_does_not_count_as_no_configuration(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(FailedPrecondition, match=r"loop/config\.toml: Too many levels"):
        read(loop)


def test_a_timeout_below_a_microsecond_is_one() -> None:
    assert parse(b"timeout = 1e-9").announced(1, "b") == {"timeout_us": 1}


def test_a_configuration_is_parsed_again_only_if_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []

    def reading(folder: Path) -> ModelConfig:
        parsed.append(folder)
        return read(folder)

    monkeypatch.setattr(configreader, "read", reading)
    reader, file = ConfigReader(), tmp_path / "config.toml"

    def write(text: str) -> None:
        file.unlink(missing_ok=True)
        file.write_text(text)
        os.utime(file, ns=(0, len(parsed)))  # the test is faster than the ticks

    assert reader.read(tmp_path) is NO_CONFIG
    write("priority = 1")
    for _ in range(2):  # it may change again within the same tick of its file system
        assert reader.read(tmp_path).priority == 1
    assert len(parsed) == 3
    monkeypatch.setattr(configreader, "_SETTLED_NS", 0)
    for _ in range(3):
        assert reader.read(tmp_path).priority == 1
    assert len(parsed) == 4
    write("priority = 2")
    assert [reader.read(tmp_path).priority for _ in range(2)] == [2, 2]
    assert len(parsed) == 5
    write("priority = 1000")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="priority is 1000"):
            reader.read(tmp_path)
    write("priority = 3")
    assert reader.read(tmp_path).priority == 3
    reader.keep([])
    assert reader.read(tmp_path).priority == 3
    assert len(parsed) == 9
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(FailedPrecondition, match="Too many levels"):
        reader.read(loop)


def test_a_file_that_is_emptied_to_be_written_is_not_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, file, draft = ConfigReader(), tmp_path / "config.toml", tmp_path / "draft"
    file.write_text("")
    assert reader.read(tmp_path) == NO_CONFIG, "it never held anything"
    file.write_text("priority = 1")
    assert reader.read(tmp_path).priority == 1
    os.truncate(file, 0)
    with pytest.raises(
        FailedPrecondition, match=r"config\.toml: it was emptied just now, as by a program that is writing it"
    ):
        reader.read(tmp_path)
    draft.touch()
    draft.replace(file)
    assert reader.read(tmp_path) == NO_CONFIG, "it came by a rename"
    file.write_text("priority = 2")
    assert reader.read(tmp_path).priority == 2
    os.truncate(file, 0)
    monkeypatch.setattr(configreader, "_SETTLED_NS", 0)
    assert reader.read(tmp_path) == NO_CONFIG, "it stays so"
    reader.keep([])
    assert not reader._inodes and not reader._known
