"""Speed and accuracy against stated targets; ``make bench`` runs all, ``python -m benchmarks.NAME`` one."""
