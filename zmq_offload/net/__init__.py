"""Sockets, endpoints and keys for clients, broker and workers."""
