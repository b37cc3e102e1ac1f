"""TensorFlow Serving, over gRPC and REST: `predict_grpc` and `predict_http` are the transports, the others pure."""
