"""Products and convolutions of 8-bit integers with int32 sums, and what moves bytes."""
