"""The connections to one Thrift host, each lent to one thread at a time."""

import threading

from inference_client.addresses import Address
from inference_client.channel import closed
from inference_client.deadline import Deadline, passed
from inference_client.thrift_connection import Connection
from inference_client.thrift_tls import TlsConnection
from inference_client.tls import Credentials


class Pool:
    """At most `max_connections`, opened when they are needed, the one used last lent first. Thread-safe."""

    def __init__(self, address: Address, connect_timeout_s: float, max_connections: int, credentials: Credentials | None = None) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._credentials = credentials
        self._free = max_connections
        """How many more may be lent."""
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._waiting = 0
        """Threads that wait for one to come back. The condition is left alone while there are none: it is slow."""

    def borrow(self, deadline: Deadline) -> Connection:
        """A connection on which nothing is under way; the caller gives it back. Raises Unreachable, deadline_exceeded."""
        connection = self._take(deadline)
        while connection is not None and not connection.is_quiet():
            connection.close()
            connection = self._next_idle()
        try:
            connection = connection or self._open(deadline)
        except BaseException:
            self._release()
            raise
        self._lent.add(connection)
        return connection

    def _open(self, deadline: Deadline) -> Connection:
        if self._credentials is None:
            return Connection(self._address, self._connect_timeout_s, deadline)
        return TlsConnection(self._address, self._connect_timeout_s, deadline, self._credentials)

    def give_back(self, connection: Connection, *, healthy: bool) -> None:
        """`healthy`: its last reply was read whole and was the right one; any other is closed."""
        self._lent.discard(connection)
        if not healthy:
            connection.close()
        self._release(connection if healthy else None)

    def _take(self, deadline: Deadline) -> Connection | None:
        """Counts one more as lent and returns an idle one, None where it has to be opened."""
        with self._lock:
            while not self._closed and not self._free:
                self._wait(deadline)
            if self._closed:
                raise closed()
            self._free -= 1
            return self._idle.pop() if self._idle else None

    def _wait(self, deadline: Deadline) -> None:
        left = deadline.left()
        self._waiting += 1
        try:
            returned = self._returned.wait(left)
        finally:
            self._waiting -= 1
        if not returned:
            raise passed()

    def _next_idle(self) -> Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _release(self, connection: Connection | None = None) -> None:
        with self._lock:
            self._free += 1
            if connection is not None and not self._closed:
                self._idle.append(connection)
                connection = None
            if self._waiting:
                self._returned.notify()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Closes what is idle now and what is lent as it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._returned.notify_all()
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """In a forked child: closes its copies of the parent's descriptors. Takes no lock: another thread may have held it at the fork."""
        for connection in [*self._idle, *self._lent]:
            connection.close()
