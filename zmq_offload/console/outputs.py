"""Check the files that a command will write, before its work begins."""

from __future__ import annotations

from pathlib import Path

from zmq_offload.errors import FailedPrecondition, InvalidArgument


def check_writable(file: Path | None) -> None:
    """Raise FailedPrecondition if a file cannot be written."""
    if file is None:
        return
    try:
        existed = file.exists()
        with file.open("ab"):
            pass
        if not existed:
            file.unlink()
    except OSError as error:
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None


def check_outputs(*given: Path | None) -> None:
    """`check_writable` for several files. Raises InvalidArgument if a file is given twice."""
    files = [file for file in given if file is not None]
    for at, file in enumerate(files):
        if file in files[:at]:
            raise InvalidArgument(f"{file} is given for two outputs; give each a file of its own")
        check_writable(file)
