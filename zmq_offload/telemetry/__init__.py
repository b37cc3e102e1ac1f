"""What programs tell of themselves: counts and times as metrics."""
