"""Search of batch size, loader processes and prefetch by trials: short runs that may run out of memory.

``step_search`` conducts the search of a step, ``space`` defines the knobs and their ranges, ``study`` runs trials as
an Optuna study, ``sampler`` samples the next config (``acquisition`` proposes it by a ``gaussian_process``),
``memory_guard`` skips configs known to be too large, ``trial_runner`` runs a trial, ``trial_result`` is its result, and
``choice`` takes the knee.
"""
