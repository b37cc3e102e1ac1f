"""The limit of open files: each connection takes one."""

from __future__ import annotations

import logging
import resource

_OWN = 64
"""Files that a program itself has open, estimated generously."""

WANTED = 65536
"""Files that a program asks for."""


def raise_file_limit(log: logging.Logger, wanted: int = WANTED) -> int:
    """Raise the limit of open files as far as allowed, up to `wanted`; return how many connections fit.

    Most systems start a process with a limit of 1024, which it may raise itself. A connection over the limit is not
    refused but never answered, so a low limit is logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    files = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    if files < 4096:
        log.warning(
            "at most %d connections: this process may have %d files open; raise the hard limit (ulimit -Hn, "
            "LimitNOFILE= in a systemd unit, --ulimit nofile= of a container)",
            files - _OWN,
            files,
        )
    return files - _OWN
