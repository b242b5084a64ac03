"""Commands on the records in the tracking server and the run folders: report, status, logs, sync."""

import sys

import click

from roofscale.cli.options import EXPERIMENTS, RUNS, json_option


@click.command()
@json_option
def report(as_json: bool) -> None:
    """Write the strategy document, the notebook, and JSON and HTML of each phase from the tracking server."""
    from roofscale.cli.run_report import print_report

    print_report(EXPERIMENTS, as_json)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show the state of every phase: attempts, steps, verdicts, unfinished attempts, and running jobs."""
    from roofscale.cli.run_records import print_status

    print_status(RUNS, as_json)


@click.command()
@click.argument("job")
@click.option("--follow", is_flag=True, help="Go on until the job is over.")
def logs(job: str, follow: bool) -> None:
    """Print the log of JOB, a SageMaker job that runs or is over."""
    from roofscale.cli.run_records import print_logs

    print_logs(job, follow)


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@json_option
def sync(dry_run: bool, as_json: bool) -> None:
    """Send the records that were kept while the tracking server was not reachable."""
    from roofscale.cli import run_records as commands

    sys.exit(commands.sync(RUNS, dry_run, as_json))
