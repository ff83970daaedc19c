"""Bridge sampling between posterior draws and a proposal."""
