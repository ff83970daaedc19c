"""What people look at: tables, verdicts, pictures, progress."""
