"""Where spans go, as options name it. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from zmq_offload.errors import InvalidArgument

NONE = "none"
"""In place of a URL: nothing is traced."""
OTEL = "otel"
"""In place of a URL: OpenTelemetry's own variables say where the collector is."""

_PATH = "/v1/traces"


def check_collector(url: str) -> str:
    """Return a collector's URL, NONE or OTEL. Raises InvalidArgument for anything else."""
    if url not in (NONE, OTEL) and not _is_web(url):
        raise InvalidArgument(f"{url!r} is not a URL of a collector; use http://HOST:4318, {OTEL} or {NONE}")
    return url


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, or a port that is no number
        return False


def endpoint_of(url: str) -> str | None:
    """Where spans are posted; None if OpenTelemetry's variables say so."""
    if url == OTEL:
        return None
    return url if urlsplit(url).path.rstrip("/").endswith(_PATH) else url.rstrip("/") + _PATH
