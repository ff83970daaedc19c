"""Speed of the suite beside its peers, in one session: `make bench`."""
