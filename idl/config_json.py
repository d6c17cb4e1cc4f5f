"""The model configuration as a JSON value: protobuf's mapping with the IDL's field names, and 64-bit numbers as numbers.

protobuf writes those as texts, and leaves out whatever has its default; `max_batch_size` and `dims` are always there, because clients
read them without asking.
"""

from typing import Any

from google.protobuf.json_format import MessageToDict


def to_json(config: Any) -> dict[str, Any]:
    """`config`: an `inference.ModelConfig`."""
    made: dict[str, Any] = {"max_batch_size": config.max_batch_size}
    made |= _with_numbers(config.DESCRIPTOR, MessageToDict(config, preserving_proto_field_name=True))
    for tensor in [*made.get("input", ()), *made.get("output", ())]:
        tensor.setdefault("dims", [])
    return made


def _with_numbers(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(kind.fields_by_name[name], value) for name, value in values.items()}


def _number(field: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_number(field, item) for item in value]
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {key: _number(kind.fields_by_name["value"], item) for key, item in value.items()}
    if kind is not None:
        return _with_numbers(kind, value)
    return int(value) if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) else value
