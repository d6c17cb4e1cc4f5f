"""Triton configurations that are damaged, odd or malicious: nothing but a refusal of ours comes out."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from idl.codes import Code, ServingError
from idl.generated import inference_pb2 as pb
from inference_server import triton_config
from inference_server.declared import Declared, present
from inference_server.model_settings import combined
from inference_server.setting_checks import InvalidModelSettings
from tests.inference_server.triton_configs import FILE, WHOLE

fixed = settings(derandomize=True, deadline=None, max_examples=400)
"""The same examples every time, however busy the machine is."""


def reads_or_refuses(raw: bytes, *, is_json: bool = False) -> None:
    """Nothing but a refusal of ours, of a length that a message can have, comes out; what is read can be put together and presented."""
    try:
        config = triton_config.parse_json("it", raw) if is_json else triton_config.parse(raw)
        found = triton_config.translated(config, "resnet", Path("/nonexistent"), "it")
        combined(found.values)
        if found.declared is not None:
            present("resnet", FILE, Declared.from_json(json.loads(json.dumps(found.declared.to_json()))))
    except InvalidModelSettings as error:
        assert len(str(error)) < 2000
    except ServingError as error:
        assert error.code is Code.INVALID_MODEL


@fixed
@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=6)), min_size=1, max_size=5), st.integers(0, len(WHOLE)))
def test_no_damage_to_a_configuration_gets_past_the_reader(changes: list[tuple[int, bytes]], stop: int) -> None:
    raw = bytearray(WHOLE.replace("classes.txt", "").encode())
    for position, data in changes:
        raw[position : position + len(data)] = data
    reads_or_refuses(bytes(raw))
    reads_or_refuses(bytes(raw[:stop]))


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.booleans() | st.none()
FIELDS = st.sampled_from([field.name for field in pb.ModelConfig.DESCRIPTOR.fields] + ["maxBatchSize", "nobody"])
VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | FIELDS, inner, max_size=3))


@fixed
@given(st.dictionaries(FIELDS, VALUES, max_size=4))
def test_no_json_gets_past_the_reader(config: dict[str, Any]) -> None:
    reads_or_refuses(json.dumps(config).encode(), is_json=True)


TENSORS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "n", "y", "z", ""])},
        optional={
            "data_type": st.integers(-1, 20) | st.sampled_from(["TYPE_FP32", "TYPE_INT64", "TYPE_NOBODY"]),
            "dims": st.lists(st.integers(-3, 2**63), max_size=4),
            "reshape": st.fixed_dictionaries({"shape": st.lists(st.integers(-3, 5), max_size=4)}),
        },
    ),
    max_size=3,
)
BATCHING = st.fixed_dictionaries(
    {},
    optional={
        "preferred_batch_size": st.lists(st.integers(-2, 70_000), max_size=3),
        "max_queue_delay_microseconds": st.integers(0, 2**64 - 1),
        "priority_levels": st.integers(0, 2**64 - 1),
        "default_priority_level": st.integers(0, 20),
        "default_queue_policy": st.fixed_dictionaries({"max_queue_size": st.integers(0, 2**32 - 1)}),
    },
)


@fixed
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_batch_size": st.integers(-2, 2**31 - 1),
            "input": TENSORS,
            "output": TENSORS,
            "dynamic_batching": BATCHING,
            "instance_group": st.lists(st.fixed_dictionaries({"count": st.integers(-3, 3000), "kind": st.integers(0, 5)}), max_size=3),
            "parameters": st.dictionaries(
                st.sampled_from(["intra_op_thread_count", "execution_mode", "outboard", "x"]),
                st.fixed_dictionaries({"string_value": st.text(max_size=6)}),
            ),
            "model_warmup": st.lists(
                st.fixed_dictionaries({"batch_size": st.integers(0, 2**32 - 1), "count": st.integers(0, 2**32 - 1)}), max_size=2
            ),
        },
    )
)
def test_no_values_get_past_the_checks(config: dict[str, Any]) -> None:
    reads_or_refuses(json.dumps(config).encode(), is_json=True)
