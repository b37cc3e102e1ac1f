"""The definitions of messages are those that clients know, and the checked-in file is made of them."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor, descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from zmq_offload.protobuf import messages
from zmq_offload.protobuf.generate import compile_definitions

TRITON = {file.DESCRIPTOR.name: file.DESCRIPTOR for file in (model_config_pb2, service_pb2)}


def all_messages(container):
    """Every message of a file or message, and the messages inside them."""
    found = (
        container.message_types_by_name
        if hasattr(container, "message_types_by_name")
        else container.nested_types_by_name
    )
    for message in found.values():
        yield message
        yield from all_messages(message)


def all_enums(file):
    """Every enum of a file."""
    yield from file.enum_types_by_name.values()
    for message in all_messages(file):
        yield from message.enum_types


def field_facts(field: descriptor.FieldDescriptor):
    """What decides how a field's bytes and its JSON look."""
    kind = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "label": (field.is_repeated, field.is_required, field.has_presence),
        "kind": kind.full_name if kind else None,
        "json": field.json_name,
        "packed": field.is_packed,
    }


@pytest.fixture(scope="module", params=["grpc_service.proto", "model_config.proto"])
def file(request):
    """One of our files that Triton's clients have, too."""
    messages.message_class("inference.ModelInferRequest")
    return messages.pool().FindFileByName(request.param)


def test_messages_and_fields_are_those_of_tritonclient(file):
    theirs = {message.full_name: message for message in all_messages(TRITON[file.name])}
    fields = 0
    for message in all_messages(file):
        for field in message.fields:
            twin = theirs[message.full_name].fields_by_name[field.name]
            assert field_facts(field) == field_facts(twin), field.full_name
            fields += 1
    assert fields > 60


def test_enums_are_those_of_tritonclient(file):
    theirs = {enum.full_name: enum for enum in all_enums(TRITON[file.name])}
    for enum in all_enums(file):
        twin = theirs[enum.full_name]
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in twin.values}, enum.full_name


def test_the_service_has_all_messages_and_methods_of_tritonclient():
    ours = messages.pool().FindFileByName("grpc_service.proto")
    theirs = TRITON["grpc_service.proto"]
    assert {m.full_name: len(m.fields) for m in all_messages(ours)} == {
        m.full_name: len(m.fields) for m in all_messages(theirs)
    }
    service, twin = (f.services_by_name["GRPCInferenceService"] for f in (ours, theirs))
    assert service.full_name == twin.full_name

    def facts(s):
        return {
            m.name: (m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in s.methods
        }

    assert facts(service) == facts(twin)
    assert len(service.methods) == 20


def test_both_live_in_one_process():
    ours = messages.message_class("inference.ModelInferRequest")
    assert ours is not service_pb2.ModelInferRequest
    assert service_pb2_grpc.GRPCInferenceServiceStub
    text = ours(model_name="m", raw_input_contents=[b"1234"]).SerializeToString()
    assert service_pb2.ModelInferRequest.FromString(text).raw_input_contents == [b"1234"]


def test_the_checked_in_file_is_what_the_command_makes(tmp_path):
    compile_definitions(tmp_path / "compiled.binpb")
    made = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "compiled.binpb").read_bytes())
    assert made == messages.definitions(), "run python -m zmq_offload.protobuf.generate"


def test_reflection_v1_and_v1alpha_are_the_same_but_for_the_package():
    v1, alpha = (messages.pool().FindFileByName(f"grpc/reflection/{v}/reflection.proto") for v in ("v1", "v1alpha"))

    def plain(file):
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        return str(proto).replace("v1alpha", "v1")

    assert plain(v1) == plain(alpha)
