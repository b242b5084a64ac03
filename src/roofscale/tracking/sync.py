"""Sending of the operations that earlier processes have left in their outboxes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient

from roofscale.tracking.apply import apply_operation
from roofscale.tracking.outbox import AbandonedOutbox, Operation, Outbox, abandoned_outboxes, said_of
from roofscale.tracking.server import is_transient, server_away_error, short_reason, tracking_uri

OUTBOX = "outbox"  # in the folder of the runs


@dataclass
class SyncResult:
    """Result of sending one outbox."""

    folder: Path
    server: str
    operations: int
    runs: tuple[str, ...]  # ids
    refused: list[str] = field(default_factory=list)  # operations that the server refuses, each with the reason


def pending(runs: Path) -> list[SyncResult]:
    """Return what waits to be sent to any server, without sending it."""
    with abandoned_outboxes(runs / OUTBOX) as outboxes:
        return [_to_result(outbox) for outbox in outboxes]


def active_outboxes(runs: Path) -> list[Path]:
    """Return the outbox folders of running processes, which will send the operations themselves."""
    with abandoned_outboxes(runs / OUTBOX) as outboxes:
        return sorted(set((runs / OUTBOX).glob("*")) - {outbox.folder for outbox in outboxes})


def send_abandoned(runs: Path, refused_too: bool = False) -> Iterator[SyncResult]:
    """Send the abandoned outboxes of the current server, oldest first, and remove from the disk what was sent.

    Operations that the server refuses are kept.

    Args:
        refused_too: whether to try operations again that the server has refused before.

    Raises:
        TrackingError: the server does not answer; operations not yet sent are kept.
    """
    with abandoned_outboxes(runs / OUTBOX) as outboxes:
        for outbox in outboxes:
            if outbox.server == tracking_uri() and (refused_too or not outbox.refused):
                yield _send(MlflowClient(), outbox)


def _send(client: MlflowClient, outbox: AbandonedOutbox) -> SyncResult:
    result, refused = _to_result(outbox), []
    for operation in outbox.operations:
        try:
            apply_operation(client, operation)
        except Exception as error:
            if is_transient(error):
                raise server_away_error(error, said_of(outbox.operations, outbox.folder)) from None
            refused.append(operation)
            result.refused.append(f"{operation.kind} of run {operation.run_id}: {short_reason(error)}")
    # An outbox of which all is refused again stays as it is.
    if not (outbox.refused and len(refused) == len(outbox.operations)):
        _keep_refused(refused, outbox)
        outbox.clear()
    return result


def _keep_refused(operations: Sequence[Operation], outbox: AbandonedOutbox) -> None:
    kept = Outbox(outbox.folder.parent, outbox.server, refused=True)
    for operation in operations:
        kept.keep(operation)
    kept.leave()


def _to_result(outbox: AbandonedOutbox) -> SyncResult:
    runs = tuple(dict.fromkeys(operation.run_id for operation in outbox.operations))
    return SyncResult(outbox.folder, outbox.server, len(outbox.operations), runs)
