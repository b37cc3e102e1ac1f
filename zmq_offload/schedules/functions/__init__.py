"""Vector code for exp, tanh, sin and other functions, with known errors."""
