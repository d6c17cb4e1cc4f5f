"""The official HTTP client, unmodified, and its asyncio twin: ADDRESS TOKEN. Ends with status 0 where everything agreed.

A program of its own: the official client registers protobuf names and patches sockets (gevent), which must not meet ours.
"""

import asyncio
import sys

import ml_dtypes
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

ARRAYS = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-32768, 32767], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1], np.int64),
    "FP16": np.array([0.1, np.inf], np.float16),
    "FP32": np.array([0.1, np.nan, -np.inf], np.float32),
    "FP64": np.array([0.1, np.nan, np.inf]),
    "BF16": np.array([0.1, -3], ml_dtypes.bfloat16),
    "BYTES": np.array([b"", b"a", "\u6f22".encode()], object),
}
BINARY_ONLY = ("FP16", "BF16")


def tensor(module: object, datatype: str, array: np.ndarray, binary: bool) -> object:
    made = module.InferInput("x", list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary)


def same(got: np.ndarray, array: np.ndarray, binary: bool) -> None:
    if array.dtype == object and not binary:
        assert got.tolist() == [item.decode() for item in array], got
    elif array.dtype == object:
        assert got.tolist() == array.tolist(), got
    else:
        assert got.dtype == array.dtype and got.tobytes() == array.tobytes(), (got, array)


def every_datatype(client: triton.InferenceServerClient) -> None:
    for datatype, array in ARRAYS.items():
        for binary_in in (True, False):
            for binary_out in (True, False):
                if datatype in BINARY_ONLY and not (binary_in and binary_out):
                    continue
                outputs = [triton.InferRequestedOutput("y", binary_data=binary_out)]
                result = client.infer(f"same-{datatype}", [tensor(triton, datatype, array, binary_in)], outputs=outputs, request_id="r-1")
                assert result.get_response()["id"] == "r-1"
                same(result.as_numpy("y"), array, binary_out)
        same(client.infer(f"same-{datatype}", [tensor(triton, datatype, array, True)]).as_numpy("y"), array, True)


def compression(client: triton.InferenceServerClient) -> None:
    array = np.arange(10_000, dtype=np.float32)
    for algorithm in ("gzip", "deflate"):
        for binary in (True, False):
            result = client.infer(
                "same-FP32",
                [tensor(triton, "FP32", array, binary)],
                outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            same(result.as_numpy("y"), array, binary)


def empty(client: triton.InferenceServerClient) -> None:
    for binary in (True, False):
        given = triton.InferInput("x", [0, 2], "FP32").set_data_from_numpy(np.zeros((0, 2), np.float32), binary_data=binary)
        result = client.infer("triple", [given], outputs=[triton.InferRequestedOutput("y", binary_data=binary)])
        assert result.as_numpy("y").shape == (0, 2)


def descriptions(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("triple")
    assert client.is_model_ready("versions", "1") and not client.is_model_ready("unloaded") and not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "outboard"
    assert client.get_model_metadata("versions")["versions"] == ["1", "2"]
    assert client.get_model_config("triple")["input"][0]["dims"] in ([2], [-1, 2])  # without the batch axis where the server makes batches
    assert {"name": "triple", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert client.get_inference_statistics("triple", "1")["model_stats"][0]["name"] == "triple"
    assert any(entry["name"] == "same-FP32" for entry in client.get_inference_statistics()["model_stats"])


def refusals(client: triton.InferenceServerClient) -> None:
    given = [tensor(triton, "FP32", np.zeros(3, np.float32), True)]
    for status, call in (
        ("404", lambda: client.infer("nobody", given)),
        ("404", lambda: client.infer("triple", given, model_version="9")),
        ("400", lambda: client.infer("triple", given)),
        ("401", lambda: client.infer("secret", given)),
        ("401", lambda: client.load_model("triple")),
        ("504", lambda: client.infer("slow", [tensor(triton, "FP32", np.zeros(1, np.float32), True)], timeout=50_000)),
    ):
        try:
            call()
        except InferenceServerException as error:
            assert error.status() == status and error.message(), error
        else:
            raise AssertionError(f"no {status}")


def operator(client: triton.InferenceServerClient, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    given = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.ones((1, 2), np.float32))
    assert client.infer("secret", [given], headers=headers).as_numpy("y").tolist() == [[2, 2]]
    client.load_model("unloaded", headers=headers)
    assert client.is_model_ready("unloaded")
    client.unload_model("unloaded", headers=headers)
    assert not client.is_model_ready("unloaded")


async def aio(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live() and (await client.get_model_metadata("triple"))["name"] == "triple"
        # long answers: this client asks for compressed ones and reads only those of an inference so
        assert len(await client.get_model_repository_index()) > 10 and (await client.get_inference_statistics())["model_stats"]
        array = np.arange(5000, dtype=np.float32)
        answers = await asyncio.gather(*(client.infer("same-FP32", [tensor(triton_aio, "FP32", array, True)]) for _ in range(8)))
        for answer in answers:
            same(answer.as_numpy("y"), array, True)
        answer = await client.infer(
            "same-FP32", [tensor(triton_aio, "FP32", array, False)], outputs=[triton_aio.InferRequestedOutput("y", False)]
        )
        same(answer.as_numpy("y"), array, False)
        try:
            await client.infer("nobody", [tensor(triton_aio, "FP32", array, True)])
        except InferenceServerException as error:
            assert error.status() == "404", error
        else:
            raise AssertionError("no 404")


def main(address: str, token: str) -> None:
    client = triton.InferenceServerClient(address)
    every_datatype(client)
    compression(client)
    empty(client)
    descriptions(client)
    refusals(client)
    operator(client, token)
    client.close()
    asyncio.run(aio(address))


if __name__ == "__main__":
    main(*sys.argv[1:])
