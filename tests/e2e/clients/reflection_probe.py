"""A health probe that knows nothing but the address: it asks the server's reflection for every message that it uses."""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

address, model = sys.argv[1:]
channel = grpc.insecure_channel(address)
reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
ask = reflection_pb2.ServerReflectionRequest


def one(request: object) -> object:
    return next(iter(reflection.ServerReflectionInfo(iter([request]))))


services = {service.name for service in one(ask(list_services="")).list_services_response.service}
assert {"inference.GRPCInferenceService", "outboard.Control", "grpc.health.v1.Health"} <= services, services
pool = descriptor_pool.DescriptorPool()
added = set()
for service in ("grpc.health.v1.Health", "inference.GRPCInferenceService", "outboard.Control"):
    for raw in one(ask(file_containing_symbol=service)).file_descriptor_response.file_descriptor_proto:
        proto = descriptor_pb2.FileDescriptorProto.FromString(raw)
        if proto.name not in added:
            pool.Add(proto)
            added.add(proto.name)


def call(service: str, method: str, /, **fields: object) -> object:
    described = pool.FindServiceByName(service).methods_by_name[method]
    request = message_factory.GetMessageClass(described.input_type)(**fields)
    answer = message_factory.GetMessageClass(described.output_type)
    stub = channel.unary_unary(
        f"/{service}/{method}", request_serializer=lambda message: message.SerializeToString(), response_deserializer=answer.FromString
    )
    return stub(request, timeout=10)


serving = 1
assert call("grpc.health.v1.Health", "Check").status == serving
assert call("grpc.health.v1.Health", "Check", service=model).status == serving
assert call("inference.GRPCInferenceService", "ServerReady").ready
assert call("inference.GRPCInferenceService", "ModelReady", name=model).ready
assert any(loaded.name == model for loaded in call("outboard.Control", "Capacity").models)
try:
    call("grpc.health.v1.Health", "Check", service="nobody")
except grpc.RpcError as error:
    assert error.code() is grpc.StatusCode.NOT_FOUND, error
else:
    raise AssertionError("the health of nobody was told")
