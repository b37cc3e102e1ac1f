"""`zmq-offload profile`: the time of each function of a model."""
