"""Statistics of curves and rates: pure functions, nothing of files or processes."""
