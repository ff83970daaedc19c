"""What is written and read: run folders, checkpoints, results, atomic files."""
