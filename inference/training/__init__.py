"""SVI with guards: fit, its options, its state and its end."""
