"""gRPC calls over HTTP/2."""
