"""The Open Inference Protocol (KServe v2), which Triton and others speak, over gRPC and HTTP."""
