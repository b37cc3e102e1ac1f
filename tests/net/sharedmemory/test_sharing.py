"""Arenas and their readers, in this process and in others."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zmq_offload.net.sharedmemory import host, layout, segment
from zmq_offload.net.sharedmemory.arena import LOOK_AGAIN, TRIM, Arena
from zmq_offload.net.sharedmemory.cells import TAKE_BACK
from zmq_offload.net.sharedmemory.layout import DATA_AT
from zmq_offload.net.sharedmemory.readers import IDLE, Readers
from zmq_offload.net.sharedmemory.references import Reference
from zmq_offload.net.sharedmemory.segment import Unreadable
from zmq_offload.net.sharedmemory.sharing import _check_system, sharing_of

pytestmark = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memfd")

_KB = 1024
_BYTES = os.urandom(100 * _KB)


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arena(clock: Clock) -> Arena:
    return Arena(1024 * _KB, clock)


@pytest.fixture
def readers(clock: Clock) -> Readers:
    return Readers(clock)


def _lend(arena: Arena, data: bytes = _BYTES) -> tuple[memoryview, Reference]:
    memory = arena.take(len(data))
    assert memory is not None
    memory[:] = data
    reference = arena.find(memory)
    assert reference is not None
    return memory, reference


def _give(arena: Arena, data: bytes = _BYTES) -> Reference:
    reference = arena.give(data)
    assert reference is not None
    return reference


def _kept(arena: Arena) -> int:
    """Bytes that the kernel has given."""
    return os.fstat(arena.fd).st_blocks * 512


def _refuse(*_: object) -> None:
    raise Unreadable("it cannot be opened here")


# --- lent memory ----------------------------------------------------------------------------------------------------


def test_lent_bytes_are_read_where_they_are(arena: Arena, readers: Readers) -> None:
    memory, reference = _lend(arena)
    read = readers.read(reference)
    assert read == _BYTES
    assert read.readonly
    memory[0] ^= 255
    assert read[0] == memory[0]


def test_a_part_of_lent_memory_can_be_referred_to_and_nothing_beyond_it(arena: Arena, readers: Readers) -> None:
    memory, whole = _lend(arena)
    part = arena.find(memory[1000:51000])
    assert part is not None
    assert readers.read(part) == _BYTES[1000:51000]
    assert arena.find(memoryview(bytes(100))) is None
    for wrong in (whole._replace(nbytes=whole.nbytes + 1), whole._replace(start=whole.start + 1)):
        with pytest.raises(Unreadable, match="other bytes"):
            readers.read(wrong)


def test_memory_that_is_dropped_is_used_again_and_its_reference_is_not_followed(arena: Arena, readers: Readers) -> None:
    memory, reference = _lend(arena)
    views = [np.ndarray((10,), np.uint8, memory[5:], 0), np.asarray(memory)[3:], np.frombuffer(memory, np.int32)]
    del memory
    while views:
        assert arena.take(1024 * _KB) is None  # an array views it
        assert readers.read(reference) == _BYTES
        views.pop()
    assert arena.take(1024 * _KB) is not None
    with pytest.raises(Unreadable, match="other bytes"):
        readers.read(reference)


def test_pinned_memory_is_not_used_again_until_it_is_read(arena: Arena, readers: Readers, clock: Clock) -> None:
    memory, reference = _lend(arena)
    first, second = readers.read(reference), readers.read(reference)
    del memory
    clock.now += 10 * TAKE_BACK
    arena.tick()
    for _ in range(20):  # whatever else is taken and written
        other = arena.take(200 * _KB)
        if other is not None:
            other[:] = bytes(200 * _KB)
    assert first == second == _BYTES
    del first
    arena.tick()
    assert second == _BYTES  # one of two pins is left
    assert arena.used > 1
    del second, other
    arena.tick()
    assert arena.used == 0


def test_a_full_arena_is_not_looked_through_again_and_again(arena: Arena, readers: Readers, clock: Clock) -> None:
    given = [_give(arena) for _ in range(10)]
    assert arena.give(_BYTES) is None  # nobody came
    assert readers.read(given[3]) == _BYTES
    assert arena.give(_BYTES) is None  # some are looked at, but not that one
    clock.now += LOOK_AGAIN
    assert arena.give(_BYTES) is not None


def test_a_full_arena_has_no_room(arena: Arena) -> None:
    assert arena.take(1024 * _KB + 1) is None
    assert arena.take(0) is None
    held = arena.take(1000 * _KB)
    assert held is not None
    assert arena.take(100 * _KB) is None
    assert arena.give(_BYTES) is None


# --- given memory ---------------------------------------------------------------------------------------------------


def test_given_bytes_are_free_when_they_were_read(arena: Arena, readers: Readers) -> None:
    read = readers.read(_give(arena))
    views = [np.ndarray((10,), np.uint8, read[5:], 0), np.asarray(read)[3:], np.frombuffer(read, np.int32)]
    del read
    while views:
        arena.tick()
        assert arena.used == 1
        views.pop()
    arena.tick()
    assert arena.used == 0


def test_given_bytes_that_nobody_reads_are_taken_back(arena: Arena, readers: Readers, clock: Clock) -> None:
    reference = _give(arena)
    clock.now += TAKE_BACK - 0.1
    arena.tick()
    assert arena.used == 1
    clock.now += 0.1
    arena.tick()
    assert arena.used == 0
    with pytest.raises(Unreadable, match="other bytes"):
        readers.read(reference)


def test_many_cells_are_given_and_read_in_any_order(arena: Arena, readers: Readers) -> None:
    rng = np.random.default_rng(7)
    waiting: list[tuple[Reference, bytes]] = []
    held: list[tuple[memoryview, bytes]] = []
    for _ in range(2000):
        data = rng.bytes(int(rng.integers(1, 60 * _KB)))
        reference = arena.give(data)
        if reference is not None:
            waiting.append((reference, data))
        if waiting and rng.random() < 0.6:
            reference, data = waiting.pop(int(rng.integers(len(waiting))))
            held.append((readers.read(reference), data))
        if held and rng.random() < 0.6:
            read, data = held.pop(int(rng.integers(len(held))))
            assert read == data
            del read
    assert all(read == data for read, data in held)
    held.clear()
    for reference, data in waiting:
        assert readers.read(reference) == data
    arena.tick()
    assert arena.used == 0


# --- what the kernel gives ------------------------------------------------------------------------------------------


def test_memory_goes_back_to_the_kernel(arena: Arena, clock: Clock) -> None:
    before = _kept(arena)
    memory, _ = _lend(arena, bytes(800 * _KB))
    for _ in range(3):
        clock.now += TRIM
        arena.tick()
    assert _kept(arena) >= before + 800 * _KB
    assert memory == bytes(800 * _KB)
    del memory
    for _ in range(3):
        clock.now += TRIM
        arena.tick()
    assert _kept(arena) == before


def test_only_whole_pages_go_back(arena: Arena, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages have 64 KiB, parts of one cannot be given back: the kernel refuses that with an error."""
    removed: list[tuple[int, int]] = []

    class Map:
        def madvise(self, option: int, start: int, length: int) -> None:
            removed.append((start, length))

    kept, _ = _lend(arena, b"abc")
    _lend(arena, bytes(300 * _KB))
    monkeypatch.setattr("zmq_offload.net.sharedmemory.arena._PAGE", 64 * _KB)
    monkeypatch.setattr(arena, "_map", Map())
    for _ in range(4):
        clock.now += TRIM
        arena.tick()
    assert removed == [(64 * _KB, 192 * _KB)]  # 4 to 304 KiB are not needed
    assert kept == b"abc"


def test_an_arena_and_its_readers_leave_no_descriptor(clock: Clock) -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    arena, readers = Arena(64 * _KB, clock), Readers(clock)
    read = readers.read(_give(arena, b"abc"))
    clock.now += IDLE + 1
    readers.tick()
    assert len(readers) == 0
    assert read == b"abc"  # it stays mapped while it is read
    del read, arena, readers
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_memory_of_an_owner_that_ended_can_be_read_on(readers: Readers) -> None:
    arena = Arena(1024 * _KB)
    memory, reference = _lend(arena)
    later = arena.give(_BYTES)
    assert later is not None
    read = readers.read(reference)
    del arena, memory
    gc.collect()
    assert read == _BYTES
    assert readers.read(later) == _BYTES
    with pytest.raises(Unreadable):
        Readers().read(later)


# --- what is not to be trusted --------------------------------------------------------------------------------------


@contextmanager
def _descriptor(kind: str, tmp_path: Path) -> Iterator[int]:
    extra: list[int] = []
    if kind == "file":
        path = tmp_path / "file"
        path.write_bytes(bytes(DATA_AT + 4096))
        fd = os.open(path, os.O_RDWR)
    elif kind == "pipe":
        fd, other = os.pipe()
        extra.append(other)
    elif kind == "device":
        fd = os.open("/dev/zero", os.O_RDWR)
    elif kind == "directory":
        fd = os.open(tmp_path, os.O_RDONLY)
    elif kind == "unsealed":
        fd = os.memfd_create(segment.NAME, os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, DATA_AT + 4096)
    elif kind == "may shrink":
        fd = os.memfd_create(segment.NAME, os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, DATA_AT + 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    elif kind == "small":
        fd = segment.make(DATA_AT - 1)
    else:
        fd = segment.make(DATA_AT + 4096)
    try:
        yield fd
    finally:
        for each in (fd, *extra):
            os.close(each)


@pytest.mark.parametrize(
    "kind", ["file", "pipe", "device", "directory", "unsealed", "may shrink", "small", "without a head"]
)
def test_a_descriptor_that_is_no_arena_is_refused(kind: str, tmp_path: Path, readers: Readers) -> None:
    with _descriptor(kind, tmp_path) as fd:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(Unreadable):
            readers.read(Reference(os.getpid(), fd, bytes(16), 0, 0, 0, 4096))
        assert set(os.listdir("/proc/self/fd")) == before


def test_another_process_descriptor_or_cookie_is_refused(arena: Arena, readers: Readers) -> None:
    reference = _give(arena)
    other = Arena(64 * _KB)
    for wrong in (
        reference._replace(pid=os.getppid()),
        reference._replace(pid=2**22 + 1),
        reference._replace(fd=other.fd),
        reference._replace(fd=2**31 - 1),
        reference._replace(cookie=bytes(16)),
        reference._replace(cell=reference.cell + 1),
        reference._replace(generation=reference.generation + 1),
        reference._replace(start=2**45),
        reference._replace(nbytes=2**45),
    ):
        with pytest.raises(Unreadable):
            readers.read(wrong)
    assert readers.read(reference) == _BYTES


def test_a_head_that_lies_about_its_cell_gives_nothing_beyond_the_arena(arena: Arena, readers: Readers) -> None:
    reference = _give(arena)
    heads = segment.map_heads(arena.fd)
    layout.write_cell(heads, reference.cell, layout.CellHead(reference.generation, 0, 2**40))
    with pytest.raises(Unreadable, match="other bytes"):
        readers.read(reference._replace(start=1000 * _KB, nbytes=100 * _KB))


# --- other processes ------------------------------------------------------------------------------------------------

_READER = """
import sys
from zmq_offload.net.sharedmemory.readers import Readers
from zmq_offload.net.sharedmemory.references import Reference
reader = Readers()
reference = eval(sys.argv[1])
read = reader.read(reference)
print(sum(read), flush=True)
sys.stdin.readline()
del read
print("gone", flush=True)
sys.stdin.readline()
"""


@contextmanager
def _reading(reference: Reference) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", _READER, repr(reference)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{sum(_BYTES)}\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def test_another_process_reads_and_frees(arena: Arena) -> None:
    with _reading(_give(arena)) as child:
        arena.tick()
        assert arena.used == 1
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "gone\n"
        arena.tick()
        assert arena.used == 0


def test_what_a_killed_reader_has_pinned_is_free_and_what_a_stopped_one_has_is_not(arena: Arena, clock: Clock) -> None:
    with _reading(_give(arena)) as child:
        child.send_signal(signal.SIGSTOP)
        clock.now += 10 * TAKE_BACK
        arena.tick()
        assert arena.used == 1
        assert arena.give(_BYTES) is not None  # there is room for others
        child.kill()
        child.wait()
        clock.now += TAKE_BACK
        arena.tick()
        assert arena.used == 0


def test_a_forked_child_uses_neither_the_arena_nor_the_locks_of_its_parent(arena: Arena, readers: Readers) -> None:
    memory, reference = _lend(arena)
    read = readers.read(reference)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            del read
            gc.collect()
            ok = arena.take(10) is None and arena.give(b"x") is None and arena.find(memory) is None
            arena.tick()
            code = 0 if ok else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    del memory
    arena.tick()
    assert (read, arena.used) == (_BYTES, 1)  # the child did not unlock it
    del read
    arena.tick()
    assert arena.used == 0


def test_threads_that_drop_what_they_read_do_not_unlock_others(arena: Arena, readers: Readers) -> None:
    memory, reference = _lend(arena)
    del memory
    keeper = readers.read(reference)

    def read_and_drop() -> None:
        for _ in range(300):
            assert len(readers.read(reference)) == len(_BYTES)

    threads = [threading.Thread(target=read_and_drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arena.tick()
    assert (keeper, arena.used) == (_BYTES, 1)
    del keeper
    arena.tick()
    assert arena.used == 0


def test_a_system_that_may_refuse_memory_later_shares_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    strict = tmp_path / "overcommit_memory"
    strict.write_text("2\n")
    monkeypatch.setattr(segment, "OVERCOMMIT", strict)
    assert sharing_of(4096, logging.getLogger("workers")) is None
    assert "shared memory: vm.overcommit_memory is 2" in caplog.text
    assert sharing_of(0, logging.getLogger("workers")) is None


@pytest.mark.parametrize(
    ("call", "does", "says"),
    [
        ("open_of", _refuse, "cannot be opened here"),
        ("pin", lambda *_: False, "is used again"),
        ("claim", lambda *_: True, "locks of open files do not work here"),
        ("unpin", lambda *_: None, "locks of open files stay"),
    ],
)
def test_a_system_without_what_is_needed_shares_nothing(
    call: str, does: Any, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segment, call, does)
    _check_system.cache_clear()  # this process may have found out already
    assert sharing_of(4096, logging.getLogger("workers")) is None
    assert says in caplog.text


# --- peers ----------------------------------------------------------------------------------------------------------


def test_who_reads_an_arena_on_this_host_proves_it_and_nobody_else(arena: Arena, readers: Readers) -> None:
    own = host.offer_of(arena)
    other = Arena(4096)
    proof = host.proof(readers, own, host.offer_of(other).packed(), b"DEALER")
    assert proof is not None
    assert host.is_proof(other, proof, b"ROUTER")
    assert not host.is_proof(other, proof, b"DEALER")  # a proof for one that accepts is none for one that connects
    assert not host.is_proof(arena, proof, b"ROUTER")
    assert not host.is_proof(other, b"", b"ROUTER")
    told = own.packed()
    for wrong in (b"", told[:-1], bytes(len(told)), bytes([told[0] ^ 1]) + told[1:], told[:-1] + bytes([told[-1] ^ 1])):
        assert host.proof(Readers(), own, wrong, b"DEALER") is None


def test_processes_of_another_user_get_bytes(arena: Arena) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    # It imports before it gives up what it may: this user's files may be hidden from it.
    code = _READER.replace("reader = ", "import os\nos.setgid(65534)\nos.setuid(65534)\nreader = ")
    reference = _give(arena)
    child = subprocess.run(
        [sys.executable, "-c", code, repr(reference)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode
    assert "Unreadable" in child.stderr
