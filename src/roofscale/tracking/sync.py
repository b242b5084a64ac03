"""Sends what processes that are gone could not send."""

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
    """What became of one outbox."""

    folder: Path
    server: str
    operations: int
    runs: tuple[str, ...]  # ids
    refused: list[str] = field(default_factory=list)  # what the server will not have, and why


def pending(runs: Path) -> list[SyncResult]:
    """What waits to be sent, to whichever server; nothing is sent."""
    with abandoned_outboxes(runs / OUTBOX) as found:
        return [_account(left) for left in found]


def active_outboxes(runs: Path) -> list[Path]:
    """Where a process that still runs keeps what it will send itself."""
    with abandoned_outboxes(runs / OUTBOX) as found:
        return sorted(set((runs / OUTBOX).glob("*")) - {left.folder for left in found})


def send_abandoned(runs: Path, refused_too: bool = False) -> Iterator[SyncResult]:
    """Send, in order, what waits for the server that is in use, and remove from the disk what was sent.

    What the server refuses is kept; it is tried again where a user asks for it, with ``refused_too``.

    Raises:
        TrackingError: the server does not answer; what was not sent is still there.
    """
    with abandoned_outboxes(runs / OUTBOX) as found:
        for left in found:
            if left.server == tracking_uri() and (refused_too or not left.refused):
                yield _send(MlflowClient(), left)


def _send(client: MlflowClient, left: AbandonedOutbox) -> SyncResult:
    account, refused = _account(left), []
    for operation in left.operations:
        try:
            apply_operation(client, operation)
        except Exception as error:
            if is_transient(error):
                raise server_away_error(error, said_of(left.operations, left.folder)) from None
            refused.append(operation)
            account.refused.append(f"{operation.kind} of run {operation.run_id}: {short_reason(error)}")
    if not (left.refused and len(refused) == len(left.operations)):
        _keep_refused(refused, left)
        left.clear()
    return account


def _keep_refused(operations: Sequence[Operation], left: AbandonedOutbox) -> None:
    box = Outbox(left.folder.parent, left.server, refused=True)
    for operation in operations:
        box.keep(operation)
    box.leave()


def _account(left: AbandonedOutbox) -> SyncResult:
    runs = tuple(dict.fromkeys(operation.run_id for operation in left.operations))
    return SyncResult(left.folder, left.server, len(left.operations), runs)
