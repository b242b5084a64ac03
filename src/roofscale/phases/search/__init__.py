"""A search of batch size, workers and prefetch by trials: short runs, each in its own process, that may die of memory.

``spec`` says what may be searched, ``foresight`` which trials are not worth running, ``trials`` runs one, ``tried`` is
what came of it, ``study`` asks Optuna for the next, ``choice`` takes the knee.
"""
