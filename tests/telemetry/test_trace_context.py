"""W3C's `traceparent`, and where spans go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import messages as wire
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.collector import check_collector, endpoint_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ids = st.binary(min_size=24, max_size=24).filter(lambda both: any(both[:16]) and any(both[16:]))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f" 00-{TRACE}-{SPAN}-01\t", 1),
        (f"00-{TRACE}-{SPAN}-ff", 1),  # flags that are not known
        (f"00-{TRACE}-{SPAN}-fe", 0),
        (f"01-{TRACE}-{SPAN}-01", 1),  # later versions
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", 1),
        (f"cc-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_a_good_traceparent(text: str, flags: int) -> None:
    trace = context.parse(text)
    assert len(trace) == wire.TRACE_BYTES
    assert (context.trace_id(trace).hex(), context.span_id(trace).hex(), trace[-1]) == (TRACE, SPAN, flags)
    assert context.sampled(trace) is bool(flags)
    assert context.text_of(trace) == f"00-{TRACE}-{SPAN}-0{flags}"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "1",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-012",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-xx",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",  # two headers
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{chr(0xFF14) * 32}-{SPAN}-01",  # digits, but not these
    ],
)
def test_a_malformed_traceparent_counts_as_none(text: str | None) -> None:
    assert context.parse(text) == b""
    assert not context.sampled(b"")


@given(ids, st.booleans())
def test_text_and_bytes_are_the_same_trace(both: bytes, sampled: bool) -> None:
    trace = context.joined(both[:16], both[16:], sampled)
    assert trace == both + bytes((sampled,))
    assert context.parse(context.text_of(trace)) == trace


@given(st.text("0123456789abcdefABCDEF-. \t", max_size=70) | st.from_regex(r"[0-9a-f]{2}-[0f]{32}-[0f]{16}-.{2,4}"))
def test_the_rules_are_those_of_the_official_library(text: str) -> None:
    """OpenTelemetry's own parser takes spaces within, and is laxer about what follows a later version's flags."""
    found = context.parse(text)
    official = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    if found:
        assert official.is_valid
        assert official.trace_id.to_bytes(16, "big") == context.trace_id(found)
        assert official.span_id.to_bytes(8, "big") == context.span_id(found)
        assert official.trace_flags.sampled == context.sampled(found)
    elif text.startswith("00-"):
        assert not official.is_valid


@given(st.binary(min_size=16, max_size=16), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_has_the_traces_of_a_smaller_one(trace_id: bytes, one: float, other: float) -> None:
    few, many = sorted((one, other))
    assert context.chosen(trace_id, few) <= context.chosen(trace_id, many)
    assert context.chosen(trace_id, 1.0) and not context.chosen(trace_id, 0.0)


def test_a_share_is_a_share() -> None:
    ids = [index.to_bytes(2, "big").rjust(11, b"\0") + bytes(5) for index in range(10_000)]
    assert sum(context.chosen(bytes(9) + one[9:], 0.25) for one in ids) == 0  # the random part is zero
    spread = [bytes(9) + index.to_bytes(2, "big") + bytes(5) for index in range(1 << 16)]
    assert sum(context.chosen(one, 0.25) for one in spread) == 1 << 14


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://host:1/base", "http://host:1/base/v1/traces"),
        ("http://host:1/v1/traces", "http://host:1/v1/traces"),
        ("otel", None),
    ],
)
def test_where_spans_are_posted(url: str, endpoint: str | None) -> None:
    assert check_collector(url) == url
    assert endpoint_of(url) == endpoint


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://host:4317", "http://", "", "http://[::1", "http://h:x"])
def test_what_is_no_collector_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a URL of a collector; use http://HOST:4318, otel or none"):
        check_collector(url)
