"""A process tree watched from outside: memory, CPU, disk, network, GPU."""
