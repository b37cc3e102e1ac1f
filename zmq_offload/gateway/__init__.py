"""A process in front of the broker that speaks HTTP and gRPC, and is an ordinary client of the broker."""
