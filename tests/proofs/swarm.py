"""Hundreds of callers of one executor in one thread: each has a lane connection with one request on its way."""

import select
import time
from collections.abc import Iterator
from dataclasses import dataclass

from idl.codes import ServingError
from idl.lane_calls import ExecutorGone, LaneAnswer, LaneConnection
from idl.messages import InferRequest
from tests.engines import LIMIT

Outcome = LaneAnswer | ServingError | ExecutorGone


@dataclass(slots=True)
class Flight:
    """A request on its way, since `sent` (seconds of the monotonic clock)."""

    number: int
    request: InferRequest
    connection: LaneConnection
    sent: float


class Swarm:
    """`close` ends every connection. Not thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._poll = select.epoll()
        self._idle: list[LaneConnection] = []
        self._flying: dict[int, Flight] = {}

    @property
    def flights(self) -> list[Flight]:
        return list(self._flying.values())

    def __len__(self) -> int:
        return len(self._flying)

    def send(self, number: int, request: InferRequest) -> Flight:
        """On an idle connection, or on a fresh one. Raises ExecutorGone."""
        connection = self._idle.pop() if self._idle else self._connect()
        flight = Flight(number, request, connection, time.monotonic())
        connection.send(request)
        self._flying[connection.fileno()] = flight
        return flight

    def _connect(self) -> LaneConnection:
        connection = LaneConnection(self._path, LIMIT)
        self._poll.register(connection.fileno(), select.EPOLLIN)
        return connection

    def cancel(self, flight: Flight) -> None:
        """Hangs up: the caller has gone."""
        del self._flying[flight.connection.fileno()]
        flight.connection.close()

    def outcomes(self, wait_s: float) -> Iterator[tuple[Flight, Outcome]]:
        """What has been answered, waiting up to `wait_s` for something. Lane errors are raised: they are nobody's answer."""
        for descriptor, _ in self._poll.poll(wait_s):
            flight = self._flying.get(descriptor)
            if flight is None:  # an idle connection that its executor has closed
                continue
            try:
                answer = flight.connection.receive()
            except ServingError as error:
                self._land(flight, keep=True)
                yield flight, error
            except ExecutorGone as gone:
                self._land(flight, keep=False)
                yield flight, gone
            else:
                if answer is not None:  # else the executor's greeting
                    self._land(flight, keep=True)
                    yield flight, answer

    def _land(self, flight: Flight, *, keep: bool) -> None:
        del self._flying[flight.connection.fileno()]
        if keep:
            self._idle.append(flight.connection)
        else:
            flight.connection.close()

    def all_outcomes(self, within_s: float = 60.0) -> list[tuple[Flight, Outcome]]:
        """Waits for whatever is on its way."""
        deadline, found = time.monotonic() + within_s, list[tuple[Flight, Outcome]]()
        while self._flying:
            assert time.monotonic() < deadline, f"{len(self._flying)} requests are not answered"
            found += self.outcomes(1.0)
        return found

    def close(self) -> None:
        for connection in (*self._idle, *(flight.connection for flight in self._flying.values())):
            connection.close()
        self._idle, self._flying = [], {}
        self._poll.close()
