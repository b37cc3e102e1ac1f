"""What `zmq-offload doctor` looks at, and what it makes of it. Facts are gathered apart from the decisions on them."""
