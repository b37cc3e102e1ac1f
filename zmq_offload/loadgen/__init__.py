"""`zmq-offload load`: puts a fabric under load and says what it did (docs/performance.md)."""
