"""Asks a server the calls of `oracle_calls`. `python -m tests.support.oracle` records the answers of a real Triton.

What is recorded: the HTTP status, the content type and coding, and the body as JSON; the gRPC code with its message, or
the reply. What tests compare is less: see `outline`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import http.client
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

from tests.support import oracle_calls
from tests.support.oracle_calls import LENGTH, HttpCall
from tests.support.servers import Triton, tritonserver
from tests.support.signed_worker import SIGNATURES, VERSIONS, Signature

Answer = dict[str, Any]
RECORDED = Path(__file__).with_name("triton_answers.json")
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def ask_http(address: str, call: HttpCall) -> Answer:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest(call.method, "/" + call.path, skip_accept_encoding=True)
        headers = {"Content-Length": str(len(call.content))} | dict(call.headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(call.content)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    coding = response.getheader("Content-Encoding")
    if coding == "gzip":
        body = gzip.decompress(body)
    elif coding == "deflate":
        body = zlib.decompress(body)
    answer: Answer = {"status": response.status}
    if coding:
        answer["coding"] = coding
    if (length := response.getheader(LENGTH)) is not None:
        answer["binary"] = body[int(length) :].hex()
        body = body[: int(length)]
    if body:
        answer["type"] = response.getheader("Content-Type")
        answer["body"] = _json(body)
    return answer


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def ask_grpc(channel: grpc.Channel, method: str, request: dict[str, Any]) -> Answer:
    described = SERVICE.methods_by_name[method]
    call = channel.unary_unary(
        f"/{SERVICE.full_name}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(described.output_type).FromString,
    )
    message = ParseDict(_encoded(request), GetMessageClass(described.input_type)())
    try:
        return {"code": "OK", "reply": _plain(call(message, timeout=20))}
    except grpc.RpcError as error:
        return {"code": error.code().name, "message": error.details()}  # type: ignore[attr-defined]


def ask_stream(channel: grpc.Channel, requests: list[dict[str, Any]]) -> Answer:
    call = channel.stream_stream(
        f"/{SERVICE.full_name}/ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    messages = [ParseDict(_encoded(request), service_pb2.ModelInferRequest()) for request in requests]
    try:
        # Triton answers in the order of the requests. The gateway does not hold back an answer that has an id.
        replies = sorted(call(iter(messages), timeout=20), key=lambda reply: reply.infer_response.id)
        return {"code": "OK", "replies": [_plain(reply) for reply in replies]}
    except grpc.RpcError as error:
        return {"code": error.code().name, "message": error.details()}  # type: ignore[attr-defined]


def _encoded(value: Any) -> Any:
    """Fields as protobuf's JSON has them: bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    return [_encoded(item) for item in value] if isinstance(value, list) else value


def _plain(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def ask_all(http_address: str, grpc_address: str) -> dict[str, dict[str, Answer]]:
    """The answers to all calls, by protocol and name."""
    with grpc.insecure_channel(grpc_address) as channel:
        return {
            "http": {name: ask_http(http_address, call) for name, call in oracle_calls.HTTP.items()},
            "grpc": {name: ask_grpc(channel, *call) for name, call in oracle_calls.GRPC.items()},
            "stream": {name: ask_stream(channel, requests) for name, requests in oracle_calls.STREAM.items()},
        }


_MODEL = """
import json
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        self.fails = config["name"] == "fails"
        self.names = [(i["name"], o["name"]) for i, o in zip(config["input"], config["output"])]

    def execute(self, requests):
        if self.fails:
            raise ArithmeticError("this model always fails")
        return [
            pb.InferenceResponse(
                [pb.Tensor(o, pb.get_input_tensor_by_name(request, i).as_numpy()) for i, o in self.names]
            )
            for request in requests
        ]
"""


def _tensors(signature: Signature) -> str:
    return ", ".join(
        f'{{ name: "{name}", data_type: TYPE_{datatype}, dims: [{", ".join(map(str, shape))}] }}'
        for name, (datatype, shape) in signature.items()
    )


@contextmanager
def triton(folder: Path, python: str) -> Iterator[Triton]:
    """Triton with the models of `signed_worker`."""
    for name, (inputs, outputs) in SIGNATURES.items():
        versions = ", ".join(map(str, VERSIONS.get(name, (1,))))
        config = (
            f'backend: "python"\nmax_batch_size: 0\nversion_policy: {{ specific {{ versions: [{versions}] }} }}\n'
            f"input [{_tensors(inputs)}]\noutput [{_tensors(outputs)}]\n"
        )
        for number in ("1", "2"):
            (folder / "models" / name / number).mkdir(parents=True)
            (folder / "models" / name / number / "model.py").write_text(_MODEL)
        (folder / "models" / name / "config.pbtxt").write_text(config)
    with tritonserver(folder, python, folder / "models", "--model-control-mode=explicit", "--load-model=*") as running:
        yield running


def outline(answer: Any) -> Any:
    """What an answer is apart from its values: codes, truth values, and the keys of objects. Numbers, texts and lists
    of numbers are alike. Objects in a list become one with the keys of all."""
    if isinstance(answer, dict):
        kept = {"status", "code", "coding"}
        return {key: value if key in kept else outline(value) for key, value in answer.items()}
    if isinstance(answer, list):
        merged: dict[str, Any] = {}
        for item in answer:
            if isinstance(item, dict):
                merged |= outline(item)
        return [merged] if merged else "list"
    return answer if isinstance(answer, bool) else type(answer).__name__


def _lines(answers: dict[str, dict[str, Answer]]) -> str:
    """JSON with a line for each call."""
    protocols = []
    for protocol, own in answers.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in own.items()]
        protocols.append(f" {json.dumps(protocol)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(protocols) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.oracle", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--triton-python", default=sys.executable, metavar="FILE", help="of Triton's environment")
    parser.add_argument("-o", "--output", type=Path, default=RECORDED, metavar="FILE.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, triton(Path(folder), args.triton_python) as running:
        answers = ask_all(running.http, running.grpc)
        args.output.write_text(_lines(answers).replace(folder, "FOLDER"))


if __name__ == "__main__":
    main()
