"""Sockets, endpoints and keys, as client, broker and workers use them. No decision is made here."""
