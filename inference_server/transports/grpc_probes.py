"""grpc.health.v1 and server reflection, beside the services that the product is made of."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2 as health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from idl.codes import Code, ServingError
from idl.generated import control_pb2, inference_pb2
from inference_server.transports import grpc_codec as codec
from inference_server.transports.grpc_calls import Call, Handlers, Receiving, Workers
from inference_server.types import Inference

WATCH_S = 1.0
"""How often a watched status is looked at."""
OWN = tuple(service for module in (inference_pb2, control_pb2) for service in module.DESCRIPTOR.services_by_name.values())
"""The descriptors of the product's services."""
_HEALTH = health.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
"""The messages of the two are the same; newer clients ask for the second first."""
_Status = health.HealthCheckResponse


class Probes:
    """Health and reflection. A health service name is a model's, or "" or a service's own for the whole server."""

    def __init__(self, inference: Inference, receiving: Receiving) -> None:
        self._inference = inference
        self._receiving = receiving
        self._services = frozenset({"", *(service.full_name for service in OWN)})
        names = [*(service.full_name for service in OWN), _HEALTH.full_name, _REFLECTION[0]]
        self._reflection = reflection.ReflectionServicer(names, _pool())
        self._closing = threading.Event()
        self._open: dict[grpc.ServicerContext, Callable[[], object]] = {}
        """Each open stream and what ends it; a stream's own thread puts it in and takes it out."""

    def add_to(self, handlers: Handlers, quick: Workers, streams: Workers) -> None:
        handlers.add(_HEALTH.methods_by_name["Check"], self._check, quick, public=True)
        handlers.add_stream(f"/{_HEALTH.full_name}/Watch", self._watch, streams)
        for name in _REFLECTION:
            handlers.add_stream(f"/{name}/ServerReflectionInfo", self._reflect, streams)

    def close(self) -> None:
        """Ends the streams, which would otherwise stay open for as long as their clients like."""
        self._closing.set()
        for end in list(self._open.values()):
            end()

    def _check(self, request: Any, call: Call) -> Any:
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise ServingError(Code.NOT_FOUND, f"{request.service!r} is neither a model nor a service here")
        return _Status(status=status)

    def _status(self, name: str) -> int:
        if name in self._services:
            ready = self._inference.server_ready()
        else:
            ready = self._inference.model_ready(name, "")
            if not ready and all(model.name != name for model in self._inference.repository_index(False)):
                return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)

    def _watch(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        request = codec.parse(health.HealthCheckRequest, self._receiving.next(messages, context) or b"")
        wake, last = threading.Event(), None
        self._open[context] = wake.set
        context.add_callback(wake.set)
        try:
            while context.is_active() and not self._closing.is_set():
                status = self._status(request.service)
                if status != last:
                    yield _Status(status=status).SerializeToString()
                last = status
                wake.wait(WATCH_S)
            yield _Status(status=_Status.NOT_SERVING).SerializeToString()
        finally:
            del self._open[context]

    def _reflect(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._open[context] = context.cancel
        try:
            requests = map(reflection_pb2.ServerReflectionRequest.FromString, () if self._closing.is_set() else messages)
            for response in self._reflection.ServerReflectionInfo(requests, context):
                yield response.SerializeToString()
        finally:
            del self._open[context]


def _pool() -> DescriptorPool:
    """Our descriptors are in private pools and the others in the default one: reflection needs one pool with all of them."""
    pool = DescriptorPool()
    for module in (inference_pb2, control_pb2, health, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
