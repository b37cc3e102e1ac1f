"""Clients: what a program calls (`sync`, `aio`), the decisions (`session`, pure), and the loops that drive a client's
socket (`driver` and `exchange`, `aiodriver`)."""
