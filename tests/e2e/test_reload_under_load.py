"""Reloads while 8 clients call over gRPC, Thrift and HTTP at once: no request fails."""

import http.client
import json
import threading
from collections.abc import Callable

import numpy as np

from inference_client import Client
from tests.e2e.conftest import Process

RELOADS = 100
MODEL = "reloaded"
X = np.float32([[1, 2]])


def over_rpc(address: str) -> Callable[[], tuple[Callable[[], list[list[float]]], Callable[[], None]]]:
    def make() -> tuple[Callable[[], list[list[float]]], Callable[[], None]]:
        client = Client(address)

        def ask() -> list[list[float]]:
            answer: list[list[float]] = client.infer(MODEL, {"x": X}).outputs["y"].tolist()
            return answer

        return ask, client.close

    return make


def over_http(address: str) -> Callable[[], tuple[Callable[[], list[list[float]]], Callable[[], None]]]:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})

    def make() -> tuple[Callable[[], list[list[float]]], Callable[[], None]]:
        connection = http.client.HTTPConnection(address, timeout=30)

        def ask() -> list[list[float]]:
            connection.request("POST", f"/v2/models/{MODEL}/infer", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, text
            return [json.loads(text)["outputs"][0]["data"]]

        return ask, connection.close

    return make


def test_100_reloads_under_load_fail_no_request(stack: Process) -> None:
    faces = [over_rpc(f"grpc://{stack['grpc']}"), over_rpc(f"thrift://{stack['thrift']}"), over_http(stack["http"].removeprefix("http://"))]
    stop, failures, counts = threading.Event(), [], [0] * 8
    begun = threading.Barrier(9)

    def call(number: int) -> None:
        ask, close = faces[number % 3]()
        try:
            begun.wait(30)
            while not stop.is_set():
                assert ask() == [[3, 6]]
                counts[number] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
            failures.append((number % 3, error))
        finally:
            close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    with Client(f"grpc://{stack['grpc']}") as operator:
        for _ in range(RELOADS):
            operator.load_model(MODEL)
        stop.set()
        for thread in threads:
            thread.join()
        loaded = operator.capacity()
    assert not failures, failures[:3]
    assert min(counts) > 5, counts
    assert [model.version for model in loaded.models if model.name == MODEL] == ["1"]
