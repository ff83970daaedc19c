"""Where independent pieces of a command run: here, in processes of this machine, or on Ray."""
