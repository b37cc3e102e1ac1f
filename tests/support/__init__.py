"""Shared by tests: real processes, traffic, faulty peers, compiled models, searches for weights and processes."""
