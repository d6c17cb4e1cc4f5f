"""Messages of `outboard.Control` <-> values. Nothing here decides or waits; every refusal is a `ServingError` with invalid_input."""

from typing import Any

from idl.generated import control_pb2 as control
from idl.messages import Capacity, HostModel, ValidatedTensor, Validation
from inference_server.errors import invalid_input
from inference_server.types import FileHeader, StoredFile


def file_header(part: Any) -> FileHeader:
    """The first message of `PutFile`."""
    if part.WhichOneof("part") != "header":
        raise invalid_input("the first message of PutFile must be the header")
    header = part.header
    return FileHeader(header.model_name, header.version, header.file_name, header.size, header.sha256, header.user)


def file_chunk(part: Any) -> bytes:
    """Every later message of `PutFile`."""
    if part.WhichOneof("part") != "chunk":
        raise invalid_input("every message of PutFile after the header must be a chunk")
    return bytes(part.chunk)


def trial_part(part: Any) -> FileHeader | bytes:
    """Every message of `Validate`."""
    if part.WhichOneof("part") is None:
        raise invalid_input("every message of Validate must be a header or a chunk")
    return file_header(part) if part.WhichOneof("part") == "header" else bytes(part.chunk)


def put_file(stored: StoredFile) -> Any:
    return control.PutFileResponse(size=stored.size, sha256=stored.sha256, existed=stored.existed)


def capacity(host: Capacity) -> Any:
    return control.CapacityResponse(
        cpus=host.cpus,
        memory_bytes=host.memory_bytes,
        memory_available_bytes=host.memory_available_bytes,
        disk_available_bytes=host.disk_available_bytes,
        execution_providers=host.execution_providers,
        models=map(_host_model, host.models),
        cpus_reserved=host.cpus_reserved,
        cpus_free=host.cpus_free,
        memory_reserved_bytes=host.memory_reserved_bytes,
        memory_free_bytes=host.memory_free_bytes,
    )


def _host_model(model: HostModel) -> Any:
    return control.CapacityResponse.Model(
        name=model.name,
        version=model.version,
        state=model.state,
        memory_bytes=model.memory_bytes,
        in_flight=model.in_flight,
        cpus=model.cpus,
        memory_reserved_bytes=model.memory_reserved_bytes,
        instances=model.instances,
        reason=model.reason,
    )


def drain(drained: bool, in_flight: int) -> Any:
    return control.DrainResponse(drained=drained, in_flight=in_flight)


def validation(found: Validation) -> Any:
    return control.ValidateResponse(
        format=found.format,
        platform=found.platform,
        algorithm=found.algorithm,
        producer=found.producer,
        opset=found.opset,
        parameter_count=found.parameter_count,
        size_bytes=found.size_bytes,
        inputs=map(_validated, found.inputs),
        outputs=map(_validated, found.outputs),
        memory_bytes=found.memory_bytes,
        load_ms=found.load_ms,
        latencies=[
            control.ValidateResponse.Latency(batch=each.batch, runs=each.runs, p50_ms=each.p50_ms, p99_ms=each.p99_ms)
            for each in found.latencies
        ],
        proposed_cpus=found.proposed_cpus,
        proposed_memory_bytes=found.proposed_memory_bytes,
        warnings=found.warnings,
        model_file=found.model_file,
        files=found.files,
    )


def _validated(tensor: ValidatedTensor) -> Any:
    return control.ValidateResponse.Tensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tensor.shape,
        low=tensor.low,
        high=tensor.high,
        optype=tensor.optype,
        values=tensor.values,
    )
