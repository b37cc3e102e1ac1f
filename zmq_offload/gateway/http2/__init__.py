"""HTTP/2, as far as gRPC needs it: frames, streams, flow control."""
