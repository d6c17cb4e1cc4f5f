"""One event loop of the front: a socket that nginx connects to, and the lanes of a model host."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from gateway.context import Services
from gateway.front.errands import Errands
from gateway.front.exchange import Exchanges
from idl.event_loop import Loop
from idl.lane_loop import Lanes
from idl.lane_routes import Routes
from idl.nginx_http import Door
from inference_client import lane_channel

SWEEP_S = 0.1
CHORES_S = 1.0
_BACKLOG = 4096


class Front:
    """Listens at `path`; the lanes are in `lanes_folder`, which may come and go. `memory_limit`: most bytes of an answer's tensors."""

    def __init__(self, services: Services, path: Path, lanes_folder: str, memory_limit: int) -> None:
        """`services` stays the caller's. Raises OSError where it cannot listen."""
        self._loop = Loop(SWEEP_S, self._tick)
        self._errands = Errands(self._loop)
        self._lanes = Lanes(self._loop, memory_limit)
        self._folder = lanes_folder
        self._place = lane_channel.place(lanes_folder)
        self._exchanges = Exchanges(services, Routes(lanes_folder), self._lanes, self._errands, self._loop)
        self._path = path
        self._door = Door(_listen(path), self._loop, self._exchanges)
        self._chores_at = 0.0
        self._leave_at: float | None = None

    def serve(self, alive: Callable[[], None] | None = None) -> None:
        """Until it has left. `alive` is called about once a second."""
        self._alive = alive
        self._loop.run()
        self._errands.close()
        self._loop.close()

    def leave(self, drain_timeout_s: float) -> None:
        """Takes no new connection, and ends once nothing is in flight or the time is over. For signal handlers, and other threads."""
        if self._leave_at is None:
            self._leave_at = time.monotonic() + drain_timeout_s

    def _tick(self, now: float) -> None:
        self._exchanges.sweep(now)
        if now >= self._chores_at:
            self._chores_at = now + CHORES_S
            self._chores(now)
        if self._leave_at is not None:
            self._leave(now >= self._leave_at)

    def _chores(self, now: float) -> None:
        if self._alive is not None:
            self._alive()
        self._lanes.trim(now - lane_channel.IDLE_S)
        place = lane_channel.place(self._folder)
        if place != self._place:  # another server, which did not know of the one before
            self._place, self._exchanges.routes = place, Routes(self._folder)

    def _leave(self, at_once: bool) -> None:
        if self._path.exists():
            self._door.close()
            self._path.unlink()
        streaming, events = self._exchanges.streaming, self._exchanges.events
        if at_once or not (streaming.running or events or any(connection.busy for connection in self._door.connections)):
            streaming.close(0.0)
            for stream in list(events):
                stream.cancel()
            for connection in list(self._door.connections):
                connection.close()
            self._lanes.trim(float("inf"))
            self._loop.stop()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of one that was killed: the gateway's lock is on the folder
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener
