"""A search of batch size, workers and prefetch by trials: short runs, each in its own process, that may die of memory.

``space`` says what may be searched, ``sampler`` which config is next (``acquisition`` by a ``gaussian_process``,
``memory_guard`` by its memory), ``trial_runner`` runs one trial, ``trial_result`` is its result, ``study`` is the loop,
``choice`` takes the knee, and ``step_search`` is what a phase calls.
"""
