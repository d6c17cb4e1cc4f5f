"""What a client has open: in each process that uses it, a dispatcher with a channel to each host."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from idl.traces import Tracer
from inference_client.addresses import Address
from inference_client.channel import Channel, closed
from inference_client.deadline import Clock
from inference_client.dispatcher import Dispatcher
from inference_client.lane_channel import LaneChannel
from inference_client.tls import Credentials


@dataclass(frozen=True, slots=True)
class Options:
    """What every channel of a client is made with; see `Client`. `credentials`: None where no address has TLS."""

    token: str
    connect_timeout_s: float
    max_connections: int
    max_message_bytes: int
    local_lane: bool
    tracer: Tracer | None
    credentials: Credentials | None


class Connections:
    """Connects when somebody calls. Thread-safe; in a forked child everything begins anew."""

    def __init__(self, addresses: Sequence[Address], options: Options, clock: Clock) -> None:
        self._addresses = tuple(addresses)
        self._options = options
        self._clock = clock
        self._closed = False
        self._dispatchers = {os.getpid(): self._make_dispatcher()}

    def mine(self) -> Dispatcher:
        """This process's. Raises unavailable after `close`."""
        if self._closed:
            raise closed()
        return self._dispatchers.get(os.getpid()) or self._after_fork()

    def close(self) -> None:
        """Calls under way finish. Idempotent."""
        self._closed = True
        (self._dispatchers.get(os.getpid()) or self._after_fork()).close()

    def _after_fork(self) -> Dispatcher:
        """This is a child: what the parent had open is let go of, and everything begins anew. Its threads may come here together."""
        pid = os.getpid()
        dispatcher = self._dispatchers.setdefault(pid, self._make_dispatcher())
        for other in [key for key in self._dispatchers if key != pid]:
            inherited = self._dispatchers.pop(other, None)
            if inherited is not None:
                inherited.abandon()
        return dispatcher

    def _make_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            [str(address) for address in self._addresses], [self._make_channel(each) for each in self._addresses], self._clock
        )

    def _make_channel(self, address: Address) -> Channel:
        rpc = self._make_rpc(address)
        if not (address.path and self._options.local_lane):
            return rpc
        return LaneChannel(address.path, rpc, self._options.max_message_bytes, self._clock, self._options.tracer)

    def _make_rpc(self, address: Address) -> Channel:
        # imported here: a Thrift client does not pay for grpcio, nor a gRPC client for thriftpy2
        options = self._options
        credentials = options.credentials if address.secure else None
        if address.protocol == "thrift":
            from inference_client.thrift_channel import ThriftChannel

            return ThriftChannel(
                address,
                token=options.token,
                connect_timeout_s=options.connect_timeout_s,
                max_connections=options.max_connections,
                max_message_bytes=options.max_message_bytes,
                credentials=credentials,
            )
        from inference_client.grpc_channel import GrpcChannel

        return GrpcChannel(
            address,
            token=options.token,
            connect_timeout_s=options.connect_timeout_s,
            max_message_bytes=options.max_message_bytes,
            credentials=credentials,
        )
