"""Tuning: measure candidate schedules on this machine, and keep those that are faster than the rules'.

`run.tune` writes results to a folder, and `database.tuned_or_none` reads them in a build.
"""
