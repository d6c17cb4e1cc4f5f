"""Finds executors that hang in native code: inside a request whose deadline is long over.

Nothing inside the process can end such a run: its one thread is in it. So it is killed from outside, and mended as a crash is.
"""

from collections.abc import Mapping

from idl.board import RUNNING_DEADLINE, RUNNING_SINCE, Board

REASON = "killed: it hung, far past the deadline of its request"


class HangWatch:
    """Not thread-safe: one caller steps it. `grace_s`: how long past its deadline a run may go on; 0 switches the watch off.

    A run whose requests have no deadline, or one of whose requests has none, may take as long as it likes.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_ns = int(grace_s * 1e9)
        self._suspects: dict[int, int] = {}

    def step(self, now_ns: int, boards: Mapping[int, Board]) -> list[int]:
        """The keys of `boards` (pids) whose process is to be killed. `now_ns` of CLOCK_MONOTONIC; to be called about once a second.

        Board cells are read one by one while the executor goes on, so the deadline of one run may be seen with the start of the next: only
        a run that is overdue in two steps in a row hangs.
        """
        if not self._grace_ns:
            return []
        overdue = {key: since for key, board in boards.items() if (since := self._overdue(now_ns, board))}
        hung = [key for key, since in overdue.items() if self._suspects.get(key) == since]
        self._suspects = {key: since for key, since in overdue.items() if key not in hung}
        return hung

    def _overdue(self, now_ns: int, board: Board) -> int:
        """When the run began that should have ended, 0 for none."""
        since, deadline = board.cells[RUNNING_SINCE], board.cells[RUNNING_DEADLINE]
        return since if since and deadline and now_ns > deadline + self._grace_ns else 0
