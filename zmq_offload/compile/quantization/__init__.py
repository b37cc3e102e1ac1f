"""Models of 8-bit integers: made of float models, or read and computed in integers."""
