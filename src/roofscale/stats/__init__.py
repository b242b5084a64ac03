"""Statistics of curves and rates: pure functions without access to files or processes."""
