"""Lists of the keys that a broker accepts, and the two ways to change them. Gateways have lists of the same form.

A list has a line for each key: the public key, a name for people and logs, and the models that the key may use,
separated by commas, or nothing for all models. A name with spaces, quotes or line ends is written as a JSON string.
Lines that begin with "#" are comments. ("#" is also a digit of Z85, but no key begins with it: it is the highest digit,
and five digits that begin with it exceed 32 bits.) `net.credentials` has what gateways' lists have in place of keys.

`authorize` and `revoke` change only the lines of one key or name. They lock the list and replace it by a rename, so
that a broker never reads half a list and no change is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound, printable
from zmq_offload.net.grants import Grant
from zmq_offload.net.keys import check_key
from zmq_offload.protocol.names import check_model_name

_LOCK_WITHIN = 10.0
"""Seconds to wait for another program that changes the list, which takes milliseconds."""

_NEW_MODE = 0o644
"""Permissions of a new list, which holds public keys and names."""


class Form(NamedTuple):
    """What the first word of each line is: its name in messages, and a check that raises InvalidArgument."""

    noun: str
    check: Callable[[str], None]


KEYS = Form("key", check_key)


class Entry(NamedTuple):
    """A line of a list; `key` is None for a comment or an empty line."""

    text: str
    key: str | None = None
    grant: Grant = Grant("")


def read_list(path: str | os.PathLike[str], form: Form = KEYS) -> dict[str, Grant]:
    """Return the grants of a list by public key.

    Raises FailedPrecondition naming file and line, also for a key with two lines that differ: a broker must not guess
    which one is meant.
    """
    found: dict[str, tuple[int, Grant]] = {}
    for number, entry in enumerate(_read(Path(path), form), 1):
        if entry.key is None:
            continue
        before, grant = found.setdefault(entry.key, (number, entry.grant))
        if grant != entry.grant:
            raise FailedPrecondition(
                f"{path}, line {number}: the {form.noun} has another grant in line {before}; remove one of the two "
                "lines"
            )
    return {key: grant for key, (_, grant) in found.items()}


def authorize(path: Path, public: bytes, grant: Grant, form: Form = KEYS) -> Grant | None:
    """Add a key to a list, or replace its grant, and return the grant that it had. A missing list is created.

    Raises FailedPrecondition for a list that cannot be read, locked or replaced, and InvalidArgument for a name that is
    empty or not UTF-8, or for an empty set of models.
    """
    if not grant.name.strip():
        raise InvalidArgument(f"the name of the {form.noun} is empty; give it a name")
    if grant.models is not None and not grant.models:
        raise InvalidArgument("the list of models is empty; name at least one model, or leave the models out for all")
    _check_text(grant.name)
    key = public.decode()
    before: list[Grant] = []

    def change(entries: Sequence[Entry]) -> list[Entry]:
        before.extend(entry.grant for entry in entries if entry.key == key)
        added = Entry(_line(key, grant), key, grant)
        at = next((at for at, entry in enumerate(entries) if entry.key == key), len(entries))
        others = [entry for entry in entries[at:] if entry.key != key]
        return [*entries[:at], added, *others]

    _edit(path, form, change, create=True)
    return before[-1] if before else None


def revoke(path: Path, name: str, form: Form = KEYS) -> None:
    """Remove all keys of a name from a list. Raises NotFound, and FailedPrecondition as `authorize` does."""

    def change(entries: Sequence[Entry]) -> list[Entry]:
        kept = [entry for entry in entries if entry.key is None or entry.grant.name != name]
        if len(kept) == len(entries):
            names = dict.fromkeys(printable(entry.grant.name) for entry in entries if entry.key is not None)
            raise NotFound(
                f"{path} has no {form.noun} named {name!r}; it has {', '.join(names) or 'none'}"
                f"{did_you_mean(name, names)}"
            )
        return kept

    _edit(path, form, change, create=False)


def parse_models(text: str) -> frozenset[str]:
    """Parse "ocr,echo". Raises InvalidArgument if a name is empty.

    An empty name may come from an unset variable, and a key without models may use all of them.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InvalidArgument(
            f"models {text!r} has an empty name; use NAME or NAME,NAME, or leave the option out for all models"
        )
    return frozenset(map(check_model_name, names))


def _read(path: Path, form: Form) -> list[Entry]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise FailedPrecondition(f"{path}, line {number} is not UTF-8 text") from None
    # splitlines() would also split at characters that a comment may contain.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [_parse(line, f"{path}, line {number}", form) for number, line in enumerate(lines, 1)]


def _parse(line: str, place: str, form: Form) -> Entry:
    words = line.removeprefix("\ufeff").strip()
    key, rest = [*words.split(maxsplit=1), "", ""][:2]
    if not words or words.startswith("#"):
        return Entry(line)
    try:
        name, models = _name_and_models(rest)
        form.check(key)
        if not name:
            raise ValueError
        return Entry(line, key, Grant(name, models))
    except InvalidArgument as error:
        raise FailedPrecondition(f"{place}: {error.message}") from None
    except ValueError:
        raise FailedPrecondition(
            f"{place} is not a {form.noun}, a name and perhaps models; separate models by commas, and quote a name "
            "with spaces"
        ) from None


def _name_and_models(text: str) -> tuple[str, frozenset[str] | None]:
    if text.startswith('"'):
        name, end = json.JSONDecoder().raw_decode(text)
        rest = text[end:].split()
    else:
        name, *rest = text.split() or [""]
    if len(rest) > 1:
        raise ValueError
    return name, frozenset(map(check_model_name, rest[0].split(","))) if rest else None


def _line(key: str, grant: Grant) -> str:
    plain = grant.name.isprintable() and " " not in grant.name and not grant.name.startswith('"')
    name = grant.name if plain else json.dumps(grant.name)
    return " ".join([key, name, *([",".join(sorted(grant.models))] if grant.models else [])])


def _check_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"the name {printable(name)} is not UTF-8; use another name") from None


def _edit(path: Path, form: Form, change: Callable[[Sequence[Entry]], list[Entry]], *, create: bool) -> None:
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    try:
        with _locked(target, path, create=create) as created:
            try:
                _replace(target, change([] if created else _read(target, form)))
            except BaseException:
                if created:
                    target.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be changed: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(target: Path, path: Path, *, create: bool) -> Iterator[bool]:
    """Keep other programs from changing the list. Yields whether the file was created for that."""
    end = time.monotonic() + _LOCK_WITHIN
    while True:
        descriptor, created = _open(target, create=create)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FailedPrecondition(f"{path} is not a regular file")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise FailedPrecondition(f"{path} is locked by another program; try again") from None
                time.sleep(0.01)
                continue
            # After a wait, this may be the lock of a file that has been replaced.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), target.stat()):
                    yield created
                    return
        finally:
            os.close(descriptor)


def _open(target: Path, *, create: bool) -> tuple[int, bool]:
    # O_NONBLOCK, because opening a FIFO would wait for its other end.
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(target, os.O_RDONLY | flags), False
    except FileNotFoundError:
        if not create:
            raise
    try:
        return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, _NEW_MODE), True
    except FileExistsError:
        return os.open(target, os.O_RDONLY | flags), False


def _replace(target: Path, entries: Sequence[Entry]) -> None:
    """Replace the list, once all of it is on disk, by a file with the same owner and permissions."""
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write("".join(f"{entry.text}\n" for entry in entries))
            old = target.stat()
            new = os.fstat(file.fileno())
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            shutil.copystat(target, draft)  # permissions, and extended attributes such as access control lists
            file.flush()
            os.utime(file.fileno())  # copystat set the old time
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
