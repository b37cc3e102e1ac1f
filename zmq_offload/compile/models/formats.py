"""Tells by content, and then by suffix, what a file is; says for a file that cannot be used which exporter to use."""

from __future__ import annotations

import enum
import stat
import zipfile
from pathlib import Path

from zmq_offload.compile.models import hints
from zmq_offload.errors import InvalidArgument

HEAD = 512
"""So many bytes of a file are read to tell its format."""


class Format(enum.Enum):
    """The formats that can be compiled."""

    ONNX = "ONNX"
    PYTORCH = "PyTorch"
    TFLITE = "TFLite"


def format_of(file: Path) -> Format:
    """The format of a file. Only its first bytes are read, and for an archive the names in it.

    Raises InvalidArgument if the file cannot be read or is of no format that can be compiled. The message says what it
    is and what to do.
    """
    head = _head(file)
    if not head:
        raise InvalidArgument(f"{file} is not a model: it is empty; copy or export it again")
    if head[4:8] == b"TFL3":
        return Format.TFLITE
    if head.startswith(b"PK\x03\x04"):
        return _in_archive(file)
    hint = _by_content(head)
    if hint is None and not _may_be_onnx(file, head):
        hint = hints.by_suffix(file.name)
    if hint is not None:
        raise _refused(file, hint)
    if file.suffix.lower() in (".pt2", ".tflite"):
        right = "torch.export.save" if file.suffix.lower() == ".pt2" else "a TFLite converter"
        raise InvalidArgument(
            f"{file} is not a {file.suffix.lower()} file, or only a part of one; write it again with {right}"
        )
    return Format.ONNX


def _head(file: Path) -> bytes:
    try:
        kind = file.stat().st_mode
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a zero byte in the name
        raise InvalidArgument(f"{str(file)!r} cannot be read: {error}") from None
    try:
        if stat.S_ISDIR(kind):
            raise _refused(file, hints.of_folder(file))
        if not stat.S_ISREG(kind):  # to read a pipe could wait for ever
            raise InvalidArgument(f"{file} is a pipe or a device; give a regular file")
        with file.open("rb") as opened:
            return opened.read(HEAD)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror or error}") from None


def _by_content(head: bytes) -> hints.Hint | None:
    for start, magic, hint in hints.MAGIC:
        if head[start : start + len(magic)] == magic:
            return hint
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return hints.SAFETENSORS
    text = head.lstrip()
    if text.startswith(b"<?xml"):
        return hints.OPENVINO if b"<net" in head else hints.XML
    return next((hint for start, hint in hints.TEXT if text[: len(start)].lower() == start), None)


def _may_be_onnx(file: Path, head: bytes) -> bool:
    """Whether a file of an unknown or a foreign suffix begins as an ONNX file does and has a graph."""
    if hints.by_suffix(file.name) is None or head[0] != 0x08:  # the field ir_version
        return False
    import onnx

    try:
        model = onnx.load(file, load_external_data=False, format="protobuf")
    except Exception:  # any file can be anything
        return False
    return bool(model.graph.node and model.graph.output)


def _in_archive(file: Path) -> Format:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            formats = [n for n in names if n.rpartition("/")[2] == "archive_format"]
            contents = [archive.read(n)[:16] for n in formats if archive.getinfo(n).file_size < 16]
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError):
        raise InvalidArgument(f"{file} is a damaged zip archive, or only a part of one; copy it again") from None
    if b"pt2" in contents or "serialized_exported_program.json" in names:
        return Format.PYTORCH
    raise _refused(file, hints.of_archive(names))


def _refused(file: Path, hint: hints.Hint) -> InvalidArgument:
    return InvalidArgument(f"{file} is {hint.what}, which cannot be compiled; {hint.todo}")
