"""A caller's connection, and the request that it waits for."""

from dataclasses import dataclass

from idl.lane import LaneEnd
from inference_server.executors.prepared import Prepared


class Connection:
    """One caller. `slot`: its cell in the journal. `request`: what it waits for, None between two requests."""

    __slots__ = ("end", "request", "slot")

    def __init__(self, end: LaneEnd, slot: int) -> None:
        self.end = end
        self.slot = slot
        self.request: Waiting | None = None


@dataclass(slots=True, eq=False)
class Waiting:
    """One request. `window`: how many answers may be on their way to a caller that takes several, 0 for one that wants one; `taken`: those
    that it has taken. `body` is its connection's own memory, which holds until the answer is sent. `deadline_ns`: when its caller gives up;
    `expires_ns`: until when it may wait in the queue; 0 for never. `begun`: it is inside the model, or was. `gone`: nobody waits for it
    any more. `cache_key`: under which its answer is kept, empty where it is not. `started_ns`: when the model began on it, 0 before. `traced`:
    its caller tells of its steps, which are then in `steps`.
    """

    connection: Connection
    sequence: int
    body: memoryview
    prepared: Prepared
    arrived_ns: int
    deadline_ns: int
    expires_ns: int
    begun: bool = False
    gone: bool = False
    window: int = 0
    taken: int = 0
    cache_key: bytes = b""
    started_ns: int = 0
    traced: bool = False
    steps: tuple[str, ...] = ()
