"""`zmq-offload demo`: text detection on a page, split over a device and two workers, checked against the uncut model."""
