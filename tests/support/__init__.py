"""What several tests need: real processes, traffic, faulty workers, models, and searches for secrets and leftovers."""
