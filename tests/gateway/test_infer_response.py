"""The writer of responses makes what protobuf reads, around the memory of the tensors."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from zmq_offload.gateway.protobuf.infer_response import Output, write_answer, write_fault, write_response
from zmq_offload.protocol import limits
from zmq_offload.protocol.tensors import DATATYPES, datatype_of

arrays = st.sampled_from(list(DATATYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def output_of(name, array):
    """An output with an array's own memory, if that is possible."""
    data = array.tobytes() if array.nbytes < 100 else np.ascontiguousarray(array).data.cast("B")
    return Output(name, datatype_of(array.dtype), array.shape, data)


def joined(parts):
    """The bytes that are sent."""
    return b"".join(parts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=5), arrays, st.sampled_from([1, 2, 500])), max_size=3),
    st.text(max_size=20) | st.just("x" * 200),
)
def test_protobuf_reads_what_was_written(given, request_id):
    made = [(name, np.repeat(array[None], repeats, 0)) for name, array, repeats in given]
    outputs = [output_of(name, array) for name, array in made]
    response = service_pb2.ModelInferResponse.FromString(joined(write_response("m", 3, request_id, outputs)))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", request_id)
    assert not response.parameters
    for output, (name, array), raw in zip(response.outputs, made, response.raw_output_contents, strict=True):
        assert (output.name, output.datatype) == (name, datatype_of(array.dtype))
        assert tuple(output.shape) == array.shape
        assert raw == array.tobytes()


def test_a_large_output_is_sent_from_its_own_memory():
    array = np.zeros(limits.PACKED_BYTES // 4 + 1, "<f4")
    parts = write_response("m", 1, "", [output_of("y", array)])
    assert len(parts) == 2
    array[0] = 7
    assert np.frombuffer(parts[1], "<f4")[0] == 7


def test_an_output_in_shared_memory_is_described_only():
    outputs = [Output("y", "FP32", (4,)), output_of("z", np.ones(2, "<i4"))]
    response = service_pb2.ModelInferResponse.FromString(joined(write_response("m", 1, "7", outputs)))
    assert response.raw_output_contents == [b"", np.ones(2, "<i4").tobytes()]


def test_an_answer_in_a_stream_says_whether_it_is_the_last():
    for final in (True, False):
        message = write_answer(write_response("m", 1, "7", [output_of("y", np.ones(3000))], final))
        answer = service_pb2.ModelStreamInferResponse.FromString(joined(message))
        assert not answer.error_message
        assert answer.infer_response.id == "7"
        assert answer.infer_response.parameters["triton_final_response"].bool_param is final
        assert answer.infer_response.raw_output_contents == [np.ones(3000).tobytes()]


def test_a_fault_in_a_stream_says_which_request_failed():
    answer = service_pb2.ModelStreamInferResponse.FromString(joined(write_fault("no \ud800 model", "7")))
    assert answer.error_message == "no ? model"
    assert answer.infer_response == service_pb2.ModelInferResponse(id="7")
