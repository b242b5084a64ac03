"""Training jobs on SageMaker: the launcher's side. ``training_job`` is process 1 inside a job.

Launcher and job exchange files in S3, under one prefix per run:

    <prefix>/<run>/config/       the run config: the job's channel ``config``
    <prefix>/<run>/folder/       the run folder, mounted in the job at /opt/ml/checkpoints; it outlives the job
    <prefix>/output/<job>/...    measurement.json of that job alone

``s3``, ``jobs_api``, ``checks`` and ``aws_errors`` import boto3 or the SDK, so a command imports them only if it needs
them. A ``session`` holds what all jobs of a command share. A ``runner`` follows each job, in a thread of its own.
"""
