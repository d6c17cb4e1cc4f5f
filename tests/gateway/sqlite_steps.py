"""What a call costs SQLite, in steps of its machine: it tells an index from a look through everything, on any computer."""

from collections.abc import Callable

from gateway.storage import Storage

_EVERY = 100


def steps_of(storage: Storage, call: Callable[[Storage], object]) -> int:
    """Steps of the virtual machine that `call` took, to within 100, over this thread's connection."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += _EVERY
        return 0

    with storage.database.read() as db:
        connection = db.conn
        connection.set_progress_handler(count, _EVERY)
    try:
        call(storage)
        with storage.database.read() as db:
            assert db.conn is connection, "the call was made over the connection that is counted"
    finally:
        connection.set_progress_handler(None, 0)
    return steps
