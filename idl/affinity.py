"""Which instance of a model keeps the state of a sequence: everybody who calls must come to the same one.

Rendezvous hashing: an instance that comes or goes moves the sequences that it gets or had, and no others. By a hash that is not linear:
the check sums (CRC) of names that differ in one digit differ by the same bits for every sequence, and one of three would get half of them.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

Instance = TypeVar("Instance")

_NONE = (None, "", 0, "0", False)


def of(parameters: Mapping[str, Any]) -> str:
    """The sequence of a request, "" for one that stands alone and may go anywhere."""
    if not parameters:
        return ""
    given = parameters.get("sequence_id")
    if given in _NONE:
        return ""
    text = str(given)
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 20 else text  # Thrift's parameters are texts: 007 is 7


def choose(instances: Sequence[tuple[str, Instance]], sequence: str) -> Instance:
    """Of (name, instance) pairs, at least one."""
    return max(instances, key=lambda each: blake2b(f"{sequence}\0{each[0]}".encode(), digest_size=8).digest())[1]
