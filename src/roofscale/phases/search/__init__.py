"""Search of batch size, loader processes and prefetch by trials: short runs that may run out of memory.

``step_search`` gives the search of a step its storage and its MLflow run, ``space`` defines the knobs and their ranges,
``study`` runs trials as an Optuna study, ``sampler`` proposes the next config by a ``gaussian_process``,
``memory_guard`` rules out configs known to be too large, ``trial_runner`` runs a trial, ``trial_result`` has its result
and the objective with the out-of-memory penalty, and ``choice`` takes the knee.
"""
