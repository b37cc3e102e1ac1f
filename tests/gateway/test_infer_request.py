"""The reader of requests means what protobuf means: the same values, or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from zmq_offload.errors import Internal, InvalidArgument
from zmq_offload.gateway.protobuf import known_requests
from zmq_offload.gateway.protobuf.infer_request import CONTENTS, divide, parse
from zmq_offload.gateway.protobuf.known_requests import divide_as_before
from zmq_offload.protobuf import varints
from zmq_offload.protocol import limits

names = st.text(max_size=6)
int32s = st.integers(-(2**31), 2**31 - 1)
int64s = st.integers(-(2**63), 2**63 - 1)
uint64s = st.integers(0, 2**64 - 1)
parameters = st.dictionaries(
    names,
    st.one_of(
        st.builds(lambda v: service_pb2.InferParameter(bool_param=v), st.booleans()),
        st.builds(lambda v: service_pb2.InferParameter(int64_param=v), int64s),
        st.builds(lambda v: service_pb2.InferParameter(uint64_param=v), uint64s),
        st.builds(lambda v: service_pb2.InferParameter(string_param=v), names),
        st.builds(lambda v: service_pb2.InferParameter(double_param=v), st.floats(allow_nan=False)),
        st.just(service_pb2.InferParameter()),
    ),
    max_size=2,
)
values = {
    "bool_contents": st.booleans(),
    "int_contents": int32s,
    "int64_contents": int64s,
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": uint64s,
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=4),
}


@st.composite
def contents(draw):
    """Typed contents of one field, or rarely of two; some are long enough to be read apart."""
    fields = draw(st.lists(st.sampled_from(list(values)), min_size=0, max_size=2, unique=True))
    repeats = draw(st.sampled_from([1, 1, 2000]))
    return service_pb2.InferTensorContents(
        **{name: draw(st.lists(values[name], max_size=3)) * repeats for name in fields}
    )


@st.composite
def tensors(draw):
    """An input."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=draw(names), datatype=draw(names), shape=draw(st.lists(int64s, max_size=4)), parameters=draw(parameters)
    )
    if draw(st.booleans()):
        tensor.contents.CopyFrom(draw(contents()))
    return tensor


@st.composite
def messages(draw):
    """A request, serialized."""
    outputs = service_pb2.ModelInferRequest.InferRequestedOutputTensor
    raw = draw(st.lists(st.one_of(st.binary(max_size=300), st.just(None)), max_size=3))
    return service_pb2.ModelInferRequest(
        model_name=draw(names),
        model_version=draw(names),
        id=draw(st.text(max_size=200)),
        parameters=draw(parameters),
        inputs=draw(st.lists(tensors(), max_size=3)),
        outputs=[outputs(name=draw(names), parameters=draw(parameters)) for _ in range(draw(st.integers(0, 2)))],
        raw_input_contents=[bytes(20_000) if tensor is None else tensor for tensor in raw],
    ).SerializeToString()


def plain(value):
    """A value of one form, in which NaN equals itself."""
    return value.hex() if isinstance(value, float) else value


def parameters_of(message):
    found = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = plain(getattr(parameter, choice)) if choice else None
    return found


def bytes_of(array):
    """An array's bytes, with one NaN only: Python changes the bits of others."""
    return (
        (np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array).astype(array.dtype).tobytes()
    )


def contents_of(message):
    """Typed contents, as bytes of their arrays."""
    found = {n: bytes_of(np.array(getattr(message, n), d)) for n, d in CONTENTS.items() if len(getattr(message, n))}
    return found | ({"bytes_contents": b""} if message.bytes_contents else {})


def as_protobuf_reads(data):
    """What a message means; None if it is refused."""
    try:
        message = service_pb2.ModelInferRequest.FromString(data)
    except DecodeError:
        return None
    counts = (message.inputs, message.outputs, message.raw_input_contents)
    if any(len(i.shape) > limits.RANK for i in message.inputs) or any(len(count) > limits.TENSORS for count in counts):
        return "beyond a limit"
    inputs = [
        (
            i.name,
            i.datatype,
            list(i.shape),
            parameters_of(i),
            contents_of(i.contents) if i.HasField("contents") else None,
        )
        for i in message.inputs
    ]
    outputs = [(o.name, parameters_of(o)) for o in message.outputs]
    named = (message.model_name, message.model_version, message.id)
    return (*named, parameters_of(message), inputs, outputs, list(message.raw_input_contents))


def read_request(data):
    """A message as the gateway takes it apart, together again."""
    rest, request_id, raw, large = divide(data)
    request = parse(rest)
    if request_id is not None:
        request = request._replace(id=request_id)
    if raw is not None:
        request = request._replace(raw=raw)
    inputs = [i._replace(contents=large.get(index, i.contents)) for index, i in enumerate(request.inputs)]
    return request._replace(inputs=inputs)


def as_we_read(data):
    """The same, by our reader."""
    try:
        request = read_request(data)
    except Internal:
        return None
    except InvalidArgument:
        return "beyond a limit"

    def shown(given):
        return {name: plain(value) for name, value in given.items()}

    inputs = [
        (
            i.name,
            i.datatype,
            list(i.shape),
            shown(i.parameters),
            None if i.contents is None else {name: bytes_of(array) for name, array in i.contents.items()},
        )
        for i in request.inputs
    ]
    outputs = [(o.name, shown(o.parameters)) for o in request.outputs]
    named = (request.model, request.version, request.id)
    return (*named, shown(request.parameters), inputs, outputs, [bytes(raw) for raw in request.raw])


@settings(max_examples=60, deadline=None)
@given(messages(), st.sampled_from([bytes, bytearray, memoryview]))
def test_a_message_has_the_meaning_that_protobuf_gives_it(data, kind):
    assert as_we_read(kind(data)) == as_protobuf_reads(data)


@settings(max_examples=60, deadline=None)
@given(messages(), messages(), st.data())
def test_changed_bytes_are_refused_or_mean_the_same(message, other, data):
    text = bytearray(message + other)
    for _ in range(data.draw(st.integers(1, 4))):
        if text:
            # Most faults belong near the start, where names and lengths are.
            at = data.draw(st.integers(0, min(len(text) - 1, 120)))
            what = data.draw(st.sampled_from(["change", "drop", "insert", "cut"]))
            byte = data.draw(
                st.one_of(st.integers(0, 255), st.sampled_from([0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x3A, 0x80]))
            )
            if what == "change":
                text[at] = byte
            elif what == "drop":
                del text[at]
            elif what == "insert":
                text.insert(at, byte)
            else:
                del text[at:]
    assert as_we_read(bytes(text)) == as_protobuf_reads(bytes(text))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_mean_the_same(text):
    assert as_we_read(text) == as_protobuf_reads(text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(CONTENTS)), st.data())
def test_changed_numbers_of_long_contents_are_refused_or_mean_the_same(name, data):
    many = data.draw(st.lists(values[name], min_size=1, max_size=8)) * 2500
    message = service_pb2.ModelInferRequest(inputs=[{"name": "x", "contents": {name: many}}])
    text = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    assert as_we_read(bytes(text)) == as_protobuf_reads(bytes(text))


def test_raw_tensors_are_the_memory_of_the_message():
    data = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(1000)]).SerializeToString()
    message = bytearray(data)
    (raw,) = read_request(message).raw
    message[-1] = 7
    assert raw[-1] == 7


def test_packed_floats_are_the_memory_of_the_message():
    contents = {"fp32_contents": [0.0] * 5000}
    message = bytearray(service_pb2.ModelInferRequest(inputs=[{"contents": contents}]).SerializeToString())
    values = read_request(message).inputs[0].contents["fp32_contents"]
    message[-4:] = np.float32(7).tobytes()
    assert values[-1] == 7


def test_numbers_that_are_not_packed_are_read():
    element = bytes((0x35,)) + np.float32(1.5).tobytes()
    text = varints.field(0x2A, varints.field(0x2A, element * 3000))
    assert read_request(text).inputs[0].contents["fp32_contents"].tolist() == [1.5] * 3000


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(varints.field(0x2A, varints.field(0x12, b"\x80" * 5000)), id="a number without an end"),
        pytest.param(
            varints.field(0x2A, varints.field(0x12, b"\x80" * 5000 + b"\x01")), id="a number that is too long"
        ),
        pytest.param(varints.field(0x2A, varints.field(0x32, bytes(5001))), id="half a float"),
        pytest.param(varints.field(0x2A, varints.field(0x32, b"")) + bytes(5000), id="field 0"),
        pytest.param(varints.field(0x0A, b"x") * 2000, id="a name that is given thousands of times"),
        pytest.param(varints.field(0x0A, b"x" * 5000), id="no contents"),
        pytest.param(varints.field(0x0A, b"x" * 5000) + b"\x12\x7f", id="a field beyond the end"),
        pytest.param(varints.field(0x0A, b"x" * 5000) + b"\x12", id="a field without a length"),
        pytest.param(varints.field(0x2A, varints.field(0x32, bytes(5000))) * 2, id="contents twice"),
        pytest.param(varints.field(0x2A, varints.field(0x32, bytes(5000)) * 2), id="a field twice"),
        pytest.param(varints.field(0x2A, varints.field(0x42, bytes(5000))), id="bytes"),
        pytest.param(varints.field(0x2A, b"") + varints.field(0x0A, b"x" * 5000), id="empty contents"),
        pytest.param(varints.field(0x2A, varints.field(0x12, b"")) + varints.field(0x0A, b"x" * 5000), id="no number"),
    ],
)
def test_unusual_inputs_are_refused_or_mean_the_same(described):
    text = varints.field(0x2A, described)
    assert as_we_read(text) == as_protobuf_reads(text)


@pytest.mark.parametrize("zeros", range(10))
def test_a_length_with_useless_bytes_is_refused_or_means_the_same(zeros):
    text = b"\x3a\x81" + b"\x80" * zeros + b"\x00x"
    assert as_we_read(text) == as_protobuf_reads(text)


def test_numbers_of_more_than_one_chunk_are_read(monkeypatch):
    monkeypatch.setattr(varints, "_CHUNK", 16)
    numbers = [2**60 + 1, 5, 300, 0] * 2000
    message = service_pb2.ModelInferRequest(inputs=[{"contents": {"uint64_contents": numbers}}])
    assert read_request(message.SerializeToString()).inputs[0].contents["uint64_contents"].tolist() == numbers


def test_requests_that_differ_in_id_and_tensors_only_have_the_same_rest():
    rests = {
        divide(
            service_pb2.ModelInferRequest(
                model_name="m",
                id=str(number),
                inputs=[{"name": "x", "shape": [1]}],
                outputs=[{"name": "y"}],
                raw_input_contents=[b"%d" % number],
            ).SerializeToString()
        ).rest
        for number in range(5)
    }
    assert len(rests) == 1


def usual(**other):
    """A request as clients send it."""
    fields = {
        "model_name": "m",
        "id": "1",
        "inputs": [{"name": "x", "shape": [2]}, {"name": "y"}],
        "raw_input_contents": [b"ab", b"c" * 300],
    }
    return service_pb2.ModelInferRequest(**fields | other).SerializeToString()


@settings(max_examples=60, deadline=None)
@given(messages(), st.text(max_size=30), st.data())
def test_a_message_like_one_before_means_what_protobuf_says(first, request_id, data):
    as_we_read(first)
    message = service_pb2.ModelInferRequest.FromString(first)
    message.id = request_id
    for number, tensor in enumerate(message.raw_input_contents):
        message.raw_input_contents[number] = bytes(reversed(tensor))
    text = bytearray(message.SerializeToString())
    assert as_we_read(bytes(text)) == as_protobuf_reads(bytes(text))
    for _ in range(data.draw(st.integers(1, 2))):
        if text:
            at = data.draw(st.integers(0, min(len(text) - 1, 200)))
            text[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([text[at] ^ 1, 0x1A, 0x3A, 0x80])))
    assert as_we_read(bytes(text)) == as_protobuf_reads(bytes(text))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (usual(), usual(id="another one")),
        (usual(), usual(id="")),
        (usual(id=""), usual(raw_input_contents=[b"cd", b"e" * 300])),
        (usual(model_version="1"), usual(model_version="1", id="7")),
        (usual(inputs=[]), usual(inputs=[], id="7")),
    ],
)
def test_a_message_that_differs_in_its_id_and_tensors_is_known(first, then):
    rest = divide(first).rest
    known = divide_as_before(memoryview(then))
    assert known is not None
    assert known.rest is rest
    assert as_we_read(then) == as_protobuf_reads(then)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (usual(), usual(model_name="n")),
        (usual(), usual(inputs=[{"name": "z", "shape": [2]}, {"name": "y"}])),
        (usual(), usual(raw_input_contents=[b"abc", b"c" * 299])),
        (usual(), usual(raw_input_contents=[b"ab", b"c" * 299, b""])),
        (usual(), usual()[:-1]),
        (usual(), usual() + b"\0"),
        (usual(), usual().replace(b"\x1a\x011", b"\x1a\x01\xff")),
        (usual(), usual().replace(b"\x0a\x01m", b"\x0a\x81\0m")),
        (usual(model_version="1"), usual(model_version="1").replace(b"\x12\x011", b"\x12\x81\x001")),
        (usual(), usual(id="i" * 128)),
        (usual(model_name="m" * 128), usual(model_name="m" * 128)),
        (usual(model_version="1" * 128), usual(model_version="1" * 128)),
        (usual(id="i" * 128), usual(id="i" * 128)),
        (usual(model_name=""), usual(model_name="")),
        (usual(raw_input_contents=[]), usual(raw_input_contents=[])),
        (usual(raw_input_contents=[b""] * 17), usual(raw_input_contents=[b""] * 17)),
        (usual(inputs=[{"name": "x" * 3000}]), usual(inputs=[{"name": "x" * 3000}])),
        (usual() + varints.field(0x1A, b"2"), usual() + varints.field(0x1A, b"2")),
        (usual(id="") + varints.field(0x2A, b""), usual(id="") + varints.field(0x2A, b"")),
        (b"\x0a\x01m\x3a\x82\0ab", b"\x0a\x01m\x3a\x82\0ab"),
        (usual(inputs=[{"contents": {"fp32_contents": [1.0] * 2000}}]), usual(inputs=[{"contents": {}}])),
    ],
)
def test_a_message_that_differs_in_more_is_read_anew(monkeypatch, first, then):
    monkeypatch.setattr(known_requests, "_known", {})
    as_we_read(first)
    assert divide_as_before(then) is None
    assert as_we_read(then) == as_protobuf_reads(then)


def test_so_many_messages_are_remembered():
    for number in range(1000):
        divide(usual(model_name=f"m{number}"))
    assert divide_as_before(usual(model_name="m999")) is not None
    assert divide_as_before(usual(model_name="m0")) is None
    assert len(known_requests._known) <= 256


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"raw_input_contents": [b""] * 300}, "300 raw_input_contents in one request; the limit is 256"),
        ({"raw_input_contents": [b""] * 2000}, "2000 raw_input_contents in one request; the limit is 256"),
        ({"inputs": [{}] * 300}, "300 inputs in one request; the limit is 256"),
        ({"inputs": [{"name": "x", "shape": [1] * 17}]}, "input 'x' has 17 dimensions; the limit is 16"),
        ({"parameters": {str(n): {} for n in range(2000)}}, "2000 parameters in one place; the limit is 1024"),
        ({"model_name": "m" * (16 << 20)}, "16777221 bytes beside raw tensors and packed contents in one request"),
    ],
)
def test_what_is_beyond_a_limit_is_refused(message, what):
    with pytest.raises(InvalidArgument, match=what):
        read_request(service_pb2.ModelInferRequest(**message).SerializeToString())


def test_bytes_that_are_no_message_are_refused():
    with pytest.raises(Internal, match=r"are no inference\.ModelInferRequest"):
        read_request(b"\xff")
