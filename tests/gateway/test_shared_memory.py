"""Regions of shared memory: what can be registered, read and written, by whom, and files that change meanwhile."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    ResourceExhausted,
    Unimplemented,
)
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.oip.regions import region_routes
from zmq_offload.gateway.regions.files import Off, SharedMemory, System
from zmq_offload.gateway.regions.table import MOST, MOST_OF_ONE, Part, Region, Table, part_of, region_of
from zmq_offload.net.grants import Grant

A, B = Grant("a"), Grant("b")


@pytest.fixture
def path() -> Iterator[Path]:
    """A file of shared memory with the bytes 0 to 99."""
    path = Path("/dev/shm") / f"zo-test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(range(100)))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def memory(path: Path) -> System:
    memory = System(largest=150, most=200)
    memory.register("r", f"/{path.name}", 10, 80, A)
    return memory


def test_a_region_is_read_and_written_in_place(memory: System, path: Path) -> None:
    first, last = memory.read([Part("r", 0, 3), Part("r", 70, 10)], A)
    assert (bytes(first), bytes(last)) == (bytes(range(10, 13)), bytes(range(80, 90)))
    [place] = memory.places([Part("r", 5, 4)], A)
    place.write([b"ab", memoryview(b"c")])
    assert path.read_bytes() == bytes(range(15)) + b"abc" + bytes(range(18, 100))


def test_nothing_is_written_beside_an_output_that_does_not_fit(memory: System, path: Path) -> None:
    [place] = memory.places([Part("r", 5, 4)], A)
    with pytest.raises(InvalidArgument, match=r"an output has 5 bytes, .* has 4; give it more"):
        place.write([b"abc", b"de"])
    assert path.read_bytes() == bytes(range(100))


def test_an_empty_tensor_needs_no_bytes(memory: System) -> None:
    [view] = memory.read([Part("r", 80, 0)], A)
    assert view.nbytes == 0
    [place] = memory.places([Part("r", 80, 0)], A)
    place.write([b""])


@pytest.mark.parametrize("part", [Part("r", 0, 81), Part("r", 81, 0), Part("r", 80, 1), Part("r", 2**70, 2**70)])
def test_a_part_must_be_inside_of_its_region(memory: System, part: Part) -> None:
    for use in (memory.read, memory.places):
        with pytest.raises(InvalidArgument, match="not inside of shared memory region 'r', which has 80 bytes"):
            use([part], A)


def test_a_client_does_not_see_the_regions_of_another(memory: System, path: Path) -> None:
    for use in (memory.read, memory.places):
        with pytest.raises(NotFound, match="'r' is not registered"):
            use([Part("r", 0, 1)], B)
    assert memory.regions(None, B) == []
    memory.register("r", path.name, 0, 1, B)
    memory.unregister(None, B)
    assert memory.regions("r", A) == [Region("r", f"/{path.name}", 10, 80)]


def test_a_name_is_registered_once(memory: System, path: Path) -> None:
    with pytest.raises(AlreadyExists, match="'r' is registered; unregister it before"):
        memory.register("r", path.name, 0, 1, A)
    memory.unregister("r", A)
    memory.register("r", path.name, 0, 1, A)
    assert memory.regions(None, A) == [Region("r", path.name, 0, 1)]


def test_an_unknown_name_is_not_found_and_cannot_be_forgotten_twice(memory: System) -> None:
    with pytest.raises(NotFound, match="'x' is not registered; registered are: r"):
        memory.regions("x", A)
    memory.unregister("x", A)
    memory.unregister("r", A)
    memory.unregister("r", A)
    assert memory.regions(None, A) == []


@pytest.mark.parametrize(
    "key", ["/missing-zo", "..", "/../etc/passwd", "/a/b", "//a", "", "/", "a\0b", "\udcff", 3, None]
)
def test_a_key_names_a_file_of_shared_memory(memory: System, key: object) -> None:
    with pytest.raises(InvalidArgument):
        memory.register("x", key, 0, 1, A)


def test_links_and_other_kinds_of_files_are_not_followed(memory: System, path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    link = path.with_name(f"{path.name}-link")
    link.symlink_to(tmp_path / "secret")
    pipe = path.with_name(f"{path.name}-pipe")
    os.mkfifo(pipe)
    try:
        for other, said in ((link, "cannot be opened"), (pipe, "is not a regular file")):
            with pytest.raises(InvalidArgument, match=said):
                memory.register("x", other.name, 0, 1, A)
    finally:
        link.unlink()
        pipe.unlink()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 101), (100, 1), (101, 1), (2**64, 1), (0, 0), (-1, 1), (0, 1.0), (True, 1)]
)
def test_a_region_must_be_inside_of_its_file(memory: System, path: Path, offset: object, size: object) -> None:
    with pytest.raises(InvalidArgument):
        memory.register("x", path.name, offset, size, A)
    assert [region.name for region in memory.regions(None, A)] == ["r"]


def test_a_file_that_became_shorter_is_an_error(memory: System, path: Path) -> None:
    [place] = memory.places([Part("r", 0, 80)], A)
    os.truncate(path, 40)
    with pytest.raises(FailedPrecondition, match="has 40 bytes, and 90 are needed: it became shorter"):
        memory.read([Part("r", 0, 80)], A)
    with pytest.raises(FailedPrecondition, match="became shorter"):
        place.write([bytes(80)])
    assert path.stat().st_size == 40


def test_a_region_lives_on_in_a_request_that_uses_it(memory: System, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    [place] = memory.places([Part("r", 0, 2)], A)
    memory.unregister("r", A)
    place.write([b"ab"])
    assert path.read_bytes()[10:12] == b"ab"
    del place
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_inputs_in_shared_memory_have_a_limit_together(memory: System) -> None:
    memory.read([Part("r", 0, 75)] * 2, A)
    with pytest.raises(ResourceExhausted, match="have 160 bytes; at most 150 are taken"):
        memory.read([Part("r", 0, 80)] * 2, A)


def test_inputs_of_all_requests_have_a_limit_together(memory: System) -> None:
    held = [memory.read([Part("r", 0, 80)], A) for _ in range(2)]
    with pytest.raises(ResourceExhausted, match="holds 160 bytes of shared memory; try again later"):
        memory.read([Part("r", 0, 41)], A)
    memory.read([Part("r", 0, 40)], A)
    array = np.frombuffer(held.pop()[0], np.uint8)[1:]
    with pytest.raises(ResourceExhausted):
        memory.read([Part("r", 0, 41)], A)
    del array
    memory.read([Part("r", 0, 80)], A)


def test_the_number_of_regions_is_limited_for_one_client_and_for_all() -> None:
    table: Table[None] = Table()
    for owner in range(MOST // MOST_OF_ONE):
        for name in range(MOST_OF_ONE):
            table.check_new(str(owner), str(name))
            table.add(str(owner), Region(str(name), "k", 0, 1), None)
        with pytest.raises(ResourceExhausted, match=f"{MOST_OF_ONE} regions of this client"):
            table.check_new(str(owner), "one more")
    with pytest.raises(ResourceExhausted, match=f"{MOST} regions are registered"):
        table.check_new("another", "x")
    table.remove("0", "0")
    table.check_new("another", "x")


def test_what_is_switched_off_says_how_to_switch_it_on() -> None:
    off = Off()
    assert (off.read([], A), off.places([], A)) == ([], [])
    for use in (
        lambda: off.register("r", "k", 0, 1, A),
        lambda: off.unregister(None, A),
        lambda: off.regions(None, A),
        lambda: off.read([Part("r", 0, 1)], A),
        lambda: off.places([Part("r", 0, 1)], A),
    ):
        with pytest.raises(Unimplemented, match="start the gateway with --system-shared-memory"):
            use()


def test_parameters_of_a_tensor_name_a_part() -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_offset": 8, "shared_memory_byte_size": 16}
    assert part_of("x", parameters) == Part("r", 8, 16)
    assert part_of("x", {"binary_data_size": 4}) is None


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"shared_memory_offset": 1}, "shared_memory_offset without shared_memory_region; give both"),
        ({"shared_memory_byte_size": 1}, "shared_memory_byte_size without shared_memory_region; give both"),
        ({"shared_memory_region": "r"}, "shared_memory_region without shared_memory_byte_size; give both"),
        ({"shared_memory_region": 3, "shared_memory_byte_size": 1}, "is 3; give the name of a registered region"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": -1}, "is -1; use a whole number of bytes from 0"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": "1"}, "is '1'; use a whole number"),
    ],
)
def test_wrong_parameters_name_the_tensor(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"tensor 'x'.*{said}"):
        part_of("x", parameters)


_TEXT = st.text(max_size=8) | st.sampled_from(["/frames", "a" * 255, "é" * 128, "a" * 300])
_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | _TEXT


@given(_TEXT, _VALUES, _VALUES, _VALUES)
def test_any_values_are_a_region_or_an_error(name: str, key: object, offset: object, byte_size: object) -> None:
    try:
        region = region_of(name, key, offset, byte_size)
    except OffloadError:
        return
    assert "/" not in region.key.removeprefix("/") and region.key not in ("", "/", ".", "..", "/..")
    assert region.offset >= 0 and region.byte_size > 0


# --- over HTTP ----------------------------------------------------------------------------------------------


class Web:
    """A client of the paths for shared memory."""

    def __init__(self, memory: SharedMemory) -> None:
        self._router = Router()
        for route in region_routes(memory):
            self._router.add(*route)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        responses: list[Response] = []
        self._router(Request(method, f"/v2/systemsharedmemory{path}", "", {}, body, A), responses.append)
        [response] = responses
        content = b"".join(bytes(part) for part in response.body)
        return response.status, json.loads(content) if content else None


def test_regions_over_http(memory: System, path: Path) -> None:
    web = Web(memory)
    body = json.dumps({"key": path.name, "byte_size": 4}).encode()
    assert web.ask("POST", "/region/two/register", body) == (200, None)
    one = {"name": "r", "key": f"/{path.name}", "offset": 10, "byte_size": 80}
    two = {"name": "two", "key": path.name, "offset": 0, "byte_size": 4}
    assert web.ask("GET", "/status") == (200, [one, two])
    assert web.ask("GET", "/region/two/status") == (200, [two])
    assert web.ask("POST", "/region/r/unregister") == (200, None)
    assert web.ask("GET", "/status") == (200, [two])
    assert web.ask("POST", "/unregister") == (200, None)
    assert web.ask("GET", "/status") == (200, [])
    assert web.ask("GET", "/region/two/status")[0] == 404
    assert web.ask("POST", "/status")[0] == 405


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"key": "k"}', b'{"byte_size": 8}', b"\xff", b"[" * 100_000])
def test_a_registration_that_is_none_is_refused(memory: System, body: bytes) -> None:
    status, answer = Web(memory).ask("POST", "/region/x/register", body)
    assert (status, answer["error"].startswith("the body is not a registration")) == (400, True)


def test_what_is_switched_off_is_501_over_http() -> None:
    web = Web(Off())
    body = b'{"key": "k", "byte_size": 8}'
    for method, place in (("GET", "/status"), ("POST", "/unregister"), ("POST", "/region/x/register")):
        status, answer = web.ask(method, place, body)
        assert (status, "--system-shared-memory" in answer["error"]) == (501, True)
