"""The official asynchronous gRPC client, unmodified: ADDRESS MODEL INPUT.npy OUTPUT.npy."""

import asyncio
import sys

import numpy as np
import tritonclient.grpc.aio as triton

address, model, source, target = sys.argv[1:]


async def main() -> None:
    async with triton.InferenceServerClient(address) as client:
        assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready(model)
        metadata = await client.get_model_metadata(model)
        data = np.load(source)
        tensor = triton.InferInput(metadata.inputs[0].name, list(data.shape), metadata.inputs[0].datatype)
        tensor.set_data_from_numpy(data)
        results = await asyncio.gather(*(client.infer(model, [tensor], request_id=str(number)) for number in range(8)))
        assert [result.get_response().id for result in results] == [str(number) for number in range(8)]
        answers = [result.as_numpy(metadata.outputs[0].name) for result in results]
        assert all((answer == answers[0]).all() for answer in answers)
        np.save(target, answers[0])


asyncio.run(main())
