"""The official client, told line by line what to ask: a JSON object in, a JSON value out. In a process of its own: its protobuf messages have
the names of ours. Addresses, and a token for HTTP, are arguments: NAME=ADDRESS.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

X = np.float32([[1, 2]])
ADDRESSES = dict(argument.split("=", 1) for argument in sys.argv[1:])
TOKEN = {"Authorization": f"Bearer {ADDRESSES['token']}"}


def module(way: str) -> Any:
    return over_http if way == "http" else over_grpc


CLIENTS = {way: module(way).InferenceServerClient(address) for way, address in ADDRESSES.items() if way != "token"}


def infer(way: str, model: str, count: int, request_id: str, traceparent: str = "", at_once: bool = False) -> int:
    """Asks so many times; each with a connection of its own where it is `at_once`."""

    def one(number: int) -> None:
        client = module(way).InferenceServerClient(ADDRESSES[way]) if at_once else CLIENTS[way]
        given = module(way).InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(X)
        headers = {"traceparent": traceparent} if traceparent else {}
        result = client.infer(model, [given], request_id=request_id, headers=headers)
        assert (result.as_numpy("y") == 2 * X).all()
        if at_once:
            client.close()

    if at_once:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, range(count)))
    else:
        for number in range(count):
            one(number)
    return count


def settings(way: str, verb: str, **arguments: Any) -> Any:
    """What `get_trace_settings` or `update_trace_settings` says, or why it was refused."""
    more: Any = {"headers": TOKEN} if way == "http" else {"as_json": True}
    try:
        told = getattr(CLIENTS[way], f"{verb}_trace_settings")(**arguments, **more)
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": error.message()}
    return told if way == "http" else {name: value["value"] for name, value in told["settings"].items()}


def extensions(way: str) -> Any:
    said = CLIENTS[way].get_server_metadata(**({} if way == "http" else {"as_json": True}))
    return said["extensions"]


VERBS = {function.__name__: function for function in (infer, settings, extensions)}
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps(VERBS[asked.pop("do")](**asked)), flush=True)
for client in CLIENTS.values():
    client.close()
