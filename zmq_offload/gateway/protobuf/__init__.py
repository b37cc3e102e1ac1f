"""Readers and writers of the messages around large tensors."""
