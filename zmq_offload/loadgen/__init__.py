"""`zmq-offload load`: sends requests at given levels and reports throughput and latency (docs/performance.md)."""
