"""`zmq-offload demo`: text detection, split over devices and workers, and checked against the uncut model."""
