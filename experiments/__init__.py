"""Files, command line, pictures and reports: the only package that knows of them."""
