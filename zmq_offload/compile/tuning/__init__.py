"""Tuning on top of the rules: candidates are measured on this machine, and kept where they are the faster ones.

`run.tune` fills a folder; `database.tuned_or_none` is what a later build reads it by.
"""
