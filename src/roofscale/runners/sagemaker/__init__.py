"""Runs configs as SageMaker training jobs: the launcher's side, and ``entry``, which is process 1 inside the job.

The launcher hands over a file and gets files back, all in S3 under one prefix a run:

    <prefix>/<run>/config/       the run config: the job's channel ``config``
    <prefix>/<run>/folder/       the run folder, which a job has at /opt/ml/checkpoints; it outlives the job
    <prefix>/output/<job>/...    measurement.json of that job alone

``store`` (S3), ``cloud`` (jobs) and ``faults`` know boto3 and are imported where a command needs them; a ``session``
holds what all jobs of a command share, each of which is followed by a ``runner`` in a thread of its own.
"""
