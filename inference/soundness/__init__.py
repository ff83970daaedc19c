"""Whether the weights of a pair average to p(x), found before a number is made."""
