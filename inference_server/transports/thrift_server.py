"""The Open Inference Protocol over framed binary Thrift: decode, call, encode."""

import re
import socket
import time
from collections.abc import Sequence
from typing import Any

from idl.codes import Code, ServingError
from idl.thrift_schema import METHODS, schema
from inference_server.run_time import RunTime
from inference_server.transports import thrift_codec as codec
from inference_server.transports.cursors import Cursors
from inference_server.transports.framed_server import FramedServer, MakeShortcut
from inference_server.transports.framed_tls import CurrentContext
from inference_server.transports.thrift_calls import Dispatcher, Verb
from inference_server.transports.thrift_control import ControlCalls
from inference_server.transports.thrift_run_time import RunTimeVerbs
from inference_server.transports.tokens import Token
from inference_server.types import Inference, Operations

SEND_TIMEOUT_S = 30.0
CONTROL = "Control"


class Verbs:
    """The methods of the service, in the order of the IDL."""

    def __init__(self, inference: Inference, cursors: Cursors, default_timeout_s: float) -> None:
        self._inference = inference
        self._cursors = cursors
        self._default_timeout_s = default_timeout_s

    def server_live(self, request: Any) -> Any:
        return schema.ServerLiveResponse(live=self._inference.server_live())

    def server_ready(self, request: Any) -> Any:
        return schema.ServerReadyResponse(ready=self._inference.server_ready())

    def model_ready(self, request: Any) -> Any:
        return schema.ModelReadyResponse(ready=self._inference.model_ready(request.name or "", request.version or ""))

    def server_metadata(self, request: Any) -> Any:
        return codec.server_metadata(self._inference.server_metadata())

    def model_metadata(self, request: Any) -> Any:
        return codec.model_metadata(self._inference.model_metadata(request.name or "", request.version or ""))

    def model_infer(self, request: Any) -> Any:
        asked = codec.infer_request(request, self._deadline(request.timeout_ms or 0))
        return codec.infer_response(self._inference.model_infer(asked), request.id)

    def stream_open(self, request: Any) -> Any:
        deadline = self._deadline(request.timeout_ms) if request.timeout_ms else None
        stream, answers, done = self._cursors.open(codec.infer_request(request, deadline))
        return codec.stream_chunk("" if done else stream, answers, done, request.id)

    def stream_next(self, request: Any) -> Any:
        stream = request.stream or ""
        answers, done = self._cursors.next(stream, request.most or 0, (request.wait_ms or 0) / 1000)
        return codec.stream_chunk("" if done else stream, answers, done, None)

    def stream_close(self, request: Any) -> Any:
        self._cursors.close(request.stream or "")
        return schema.StreamCloseResponse()

    def model_config(self, request: Any) -> Any:
        return codec.model_config(self._inference.model_config(request.name or "", request.version or ""))

    def model_statistics(self, request: Any) -> Any:
        return codec.model_statistics(self._inference.model_statistics(request.name or "", request.version or ""))

    def repository_index(self, request: Any) -> Any:
        return codec.repository_index(self._inference.repository_index(bool(request.ready)))

    def repository_model_load(self, request: Any) -> Any:
        self._inference.repository_model_load(request.model_name or "", codec.load_parameters(request))
        return schema.RepositoryModelLoadResponse()

    def repository_model_unload(self, request: Any) -> Any:
        self._inference.repository_model_unload(request.model_name or "", request.parameters or {})
        return schema.RepositoryModelUnloadResponse()

    def _deadline(self, timeout_ms: int) -> float:
        if timeout_ms < 0:
            raise ServingError(Code.DEADLINE_EXCEEDED, f"{timeout_ms} ms were left when the request was sent")
        return time.monotonic() + (timeout_ms / 1000 if timeout_ms else self._default_timeout_s)


class ThriftServer:
    """Serves `listeners`, bound stream sockets (TCP or unix), with `threads` threads; 0 ms in a request means `default_timeout_s`.

    `operations`: what the verb `Control` is for, None: there is no such method. A frame, or an answer, of more than `max_frame_bytes` is too_large. A connection that has been idle for `idle_timeout_s` is closed,
    and beyond `max_connections` new ones are.
    """

    def __init__(
        self,
        inference: Inference,
        operations: Operations | None = None,
        *,
        listeners: Sequence[socket.socket],
        max_frame_bytes: int,
        threads: int,
        token: str,
        default_timeout_s: float,
        token_file: str = "",
        idle_timeout_s: float = 600.0,
        max_connections: int = 4096,
        send_timeout_s: float = SEND_TIMEOUT_S,
        shortcut: MakeShortcut | None = None,
        run_time: RunTime | None = None,
        tls: CurrentContext | None = None,
    ) -> None:
        self._cursors = Cursors(inference, waiting=max(1, threads // 2))
        verbs = (Verbs(inference, self._cursors, default_timeout_s), RunTimeVerbs(inference, run_time or RunTime()))
        methods = {name: _verb(verbs, name) for name in METHODS if name != CONTROL}
        tokens = Token(token, token_file)
        self._control: ControlCalls | None = None
        if operations is not None:
            self._control = ControlCalls(
                operations, tokens, default_timeout_s=default_timeout_s, max_bytes=max_frame_bytes, waiting=max(1, threads // 2)
            )
            methods[CONTROL] = self._control.control
        self._server = FramedServer(
            Dispatcher(methods, tokens, max_frame_bytes),
            listeners=listeners,
            threads=threads,
            max_frame_bytes=max_frame_bytes,
            idle_timeout_s=idle_timeout_s,
            send_timeout_s=send_timeout_s,
            max_connections=max_connections,
            shortcut=shortcut,
            tls=tls,
        )

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._server.connections

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Closes the listeners, answers what is here or on its way for `grace_s` seconds, then cuts off the rest. Idempotent."""
        if self._control is not None:
            self._control.close_all()
        self._server.stop(grace_s)
        self._cursors.close_all()


def _verb(verbs: Sequence[Verbs | RunTimeVerbs], method: str) -> Verb:
    """`ModelInfer` -> the bound method `model_infer` of whichever has it."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
    verb: Verb = getattr(next(each for each in verbs if hasattr(each, name)), name)
    return verb
