"""A device bundle whose heads run in Triton."""
