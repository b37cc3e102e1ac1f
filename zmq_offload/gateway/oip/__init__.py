"""The Open Inference Protocol (KServe v2) with the extensions of Triton, over HTTP and gRPC."""
