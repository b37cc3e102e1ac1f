"""`zmq-offload profile`: where the time of a model goes."""
