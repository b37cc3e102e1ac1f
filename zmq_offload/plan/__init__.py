"""`zmq-offload plan`: where to cut a model, from measured times and the link. No TVM in here."""
