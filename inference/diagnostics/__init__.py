"""What tells whether to believe a posterior: calibration, references, export, a check."""
