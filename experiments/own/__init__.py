"""The user's own files: code, programs, data, and what makes a pair of them."""
