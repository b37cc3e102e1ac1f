"""grpc.reflection.v1.ServerReflection, and v1alpha, which most clients ask for: the definitions of services. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from zmq_offload.errors import InvalidArgument, NotFound, OffloadError, Status
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.grpc.calls import Streaming, Writer
from zmq_offload.gateway.statuses import CODES
from zmq_offload.protobuf.messages import message_class, parse_small_message, pool

PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


def methods(services: Iterable[str]) -> dict[str, Streaming]:
    """The methods by their paths. `services` are the other gRPC services; those without a definition are left out."""
    own = (f"{package}.ServerReflection" for package in PACKAGES)
    names = sorted(name for name in {*services, *own} if _is_defined(name))

    def streaming(package: str) -> Streaming:
        return Streaming(lambda _context, writer: _Reflection(package, names, writer))

    return {f"/{package}.ServerReflection/ServerReflectionInfo": streaming(package) for package in PACKAGES}


class _Reflection:
    """A client that asks for definitions. Each request has its answer; an error is one, and the stream lives on."""

    def __init__(self, package: str, services: Sequence[str], writer: Writer) -> None:
        self._request = f"{package}.ServerReflectionRequest"
        self._response = message_class(f"{package}.ServerReflectionResponse")
        self._services = services
        self._writer = writer
        self._over = False

    def message(self, data: Buffer) -> None:
        """Answer a request."""
        if self._over:
            return
        try:
            request = parse_small_message(self._request, data)
        except OffloadError as error:
            self._close(error)
            return
        response = self._response(valid_host=request.host, original_request=request)
        try:
            self._answer(request, response)
        except OffloadError as error:
            response.error_response.error_code = CODES[Status(error.code)].grpc
            response.error_response.error_message = error.message
        self._writer.send((response.SerializeToString(),))

    def half_closed(self) -> None:
        """There are no more requests."""
        if not self._over:
            self._close(None)

    def canceled(self) -> None:
        """The client is gone."""
        self._over = True

    def _close(self, error: OffloadError | None) -> None:
        self._over = True
        self._writer.close(error)

    def _answer(self, request: Any, response: Any) -> None:
        """Fill in a response. Raises NotFound, and InvalidArgument for a request that asks for nothing."""
        what = request.WhichOneof("message_request")
        if what == "list_services":
            for name in self._services:
                response.list_services_response.service.add(name=name)
        elif what == "file_by_filename":
            _add(response, _found("file", request.file_by_filename, pool().FindFileByName))
        elif what == "file_containing_symbol":
            _add(response, _found("symbol", request.file_containing_symbol, _file_of))
        elif what == "file_containing_extension":
            wanted = request.file_containing_extension
            _found("message", wanted.containing_type, pool().FindMessageTypeByName)
            raise NotFound(f"message {wanted.containing_type!r} has no extension {wanted.extension_number}")
        elif what == "all_extension_numbers_of_type":
            # The definitions are proto3, which has no extensions.
            _found("message", request.all_extension_numbers_of_type, pool().FindMessageTypeByName)
            response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
        else:
            raise InvalidArgument("the request asks for nothing; set one of its fields")


def _is_defined(service: str) -> bool:
    try:
        pool().FindServiceByName(service)
    except KeyError:
        return False
    return True


def _found(what: str, name: str, find: Callable[[str], Any]) -> Any:
    try:
        return find(name)
    except KeyError:
        raise NotFound(f"{what} {name!r:.200} is not known; list_services has what is") from None


def _file_of(symbol: str) -> FileDescriptor:
    """The file of a symbol. Raises KeyError. The pool does not know methods by themselves."""
    service, _, method = symbol.rpartition(".")
    try:
        return pool().FindFileContainingSymbol(symbol)
    except KeyError:
        return pool().FindServiceByName(service).methods_by_name[method].containing_service.file


def _add(response: Any, file: FileDescriptor) -> None:
    """Add a file after those that it imports, each once."""
    files: dict[str, bytes] = {}

    def visit(each: FileDescriptor) -> None:
        for imported in each.dependencies:
            visit(imported)
        files[each.name] = each.serialized_pb

    visit(file)
    # The file that was asked for is the first, where simple clients look for it.
    response.file_descriptor_response.file_descriptor_proto.extend(reversed(files.values()))
