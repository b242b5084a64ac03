"""Sender of operations to the tracking server, with a thread of its own and an outbox for when the server is away."""

import logging
import threading
import time
from collections import deque

from mlflow import MlflowClient

from roofscale.tracking.apply import apply_operation
from roofscale.tracking.outbox import Operation, Outbox, said_of
from roofscale.tracking.server import is_transient, server_away_error, short_reason, tracking_uri

_PAUSES = (0.5, 5.0)  # seconds between attempts while the server is away: the first, and the longest after doubling
_log = logging.getLogger(__name__)


class Sender:
    """First-in, first-out queue of operations for the tracking server.

    ``enqueue`` never waits for the server, as the supervising thread calls it too. The sending thread lives only while
    the queue has operations. If the server does not answer, the queue is written to the outbox, and so is each new
    operation, until everything has been sent.
    """

    def __init__(self, client: MlflowClient, outbox: Outbox) -> None:
        self._client, self._outbox = client, outbox
        self._queue: deque[Operation] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._refused = Outbox(outbox.folder.parent, tracking_uri(), refused=True)
        self._reported: set[str] = set()  # kinds of operation that the server has refused; the log names each once
        self._away: Exception | None = None  # the latest error while the server does not answer; else None
        self._answered = 0.0  # monotonic seconds of its last answer, or of the first failure since

    def enqueue(self, operation: Operation) -> None:
        """Add an operation to the queue, and start the sending thread if there is none."""
        with self._changed:
            self._queue.append(self._keep(operation) if self._away else operation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="tracking", daemon=True)
                self._thread.start()

    def flush(self, patience: float = 0.0) -> None:
        """Wait until the queue is empty, or until the server has not answered for ``patience`` seconds."""
        with self._changed:
            while self._queue and not (self._away and time.monotonic() - self._answered >= patience):
                self._changed.wait(0.5)

    def flush_or_raise(self, patience: float) -> None:
        """Wait until the queue is empty.

        Raises:
            TrackingError: the server has not answered for ``patience`` seconds; the message names the outbox.
        """
        self.flush(patience)
        with self._changed:
            if self._queue and self._away:
                raise server_away_error(self._away, said_of(self._queue, self._outbox.folder))

    def close(self, patience: float) -> None:
        """Wait like ``flush_or_raise``, and leave the refused operations to ``roofscale sync``."""
        self.flush_or_raise(patience)
        self._refused.leave()

    @property
    def has_refused(self) -> bool:
        """Whether the server has refused an operation."""
        return bool(self._reported)

    def _send(self) -> None:
        pause, longest = _PAUSES
        while (operation := self._next()) is not None:
            try:
                apply_operation(self._client, operation)
            except Exception as error:
                if is_transient(error):
                    self._mark_away(error)
                    time.sleep(pause)
                    pause = min(2 * pause, longest)
                    continue
                self._set_aside(operation, error)
            pause = _PAUSES[0]
            with self._changed:
                self._queue.popleft()
                self._answered = time.monotonic()

    def _next(self) -> Operation | None:
        """Return the first operation, without removing it; None, which ends the thread, if the queue is empty."""
        with self._changed:
            if self._queue:
                return self._queue[0]
            if self._away:
                _log.warning("The tracking server answers again and has everything.")
                self._away = None
                self._outbox.clear()
            self._thread = None
            self._changed.notify_all()
            return None

    def _set_aside(self, operation: Operation, error: Exception) -> None:
        """Keep an operation that the server refuses for ``roofscale sync``: a refusal must not change the run."""
        self._keep(operation, self._refused)
        if operation.kind not in self._reported:
            self._reported.add(operation.kind)
            _log.warning(
                f"{tracking_uri()}: the tracking server refuses the {operation.kind} of run {operation.run_id} "
                f"({short_reason(error)}); it is kept in {self._refused.folder}, and `roofscale sync` offers it again."
            )

    def _mark_away(self, error: Exception) -> None:
        """Note that the server does not answer; at the first failure, write the queue to the outbox."""
        with self._changed:
            if not self._away:
                self._answered = time.monotonic()
                self._queue = deque(map(self._keep, self._queue))
                kept = f"what is logged is kept in {self._outbox.folder}"
                _log.warning(f"{tracking_uri()} does not answer ({short_reason(error)}); {kept}.")
            self._away = error
            self._changed.notify_all()

    def _keep(self, operation: Operation, box: Outbox | None = None) -> Operation:
        """Write an operation to an outbox; if the disk is full, it stays in memory, as that must not end a run."""
        box = box or self._outbox
        try:
            return box.keep(operation)
        except OSError as error:
            _log.warning(f"{box.folder}: cannot be written ({short_reason(error)}); make room there.")
            return operation
