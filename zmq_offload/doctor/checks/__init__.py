"""Decisions: from facts to findings. Pure."""
