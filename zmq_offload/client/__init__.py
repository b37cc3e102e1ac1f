"""The client: what a program calls (`sync`, `aio`), its decisions (`session`, pure), and the loops that drive its
socket (`driver`, `aiodriver`)."""
