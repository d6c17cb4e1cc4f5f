"""The official gRPC client, unmodified: ADDRESS MODEL INPUT.npy OUTPUT.npy."""

import sys

import numpy as np
import tritonclient.grpc as triton

address, model, source, target = sys.argv[1:]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model) and client.is_model_ready(model, "1")
metadata = client.get_model_metadata(model)
(given,), (wanted,) = metadata.inputs, metadata.outputs
data = np.load(source)
tensor = triton.InferInput(given.name, list(data.shape), given.datatype)
tensor.set_data_from_numpy(data)
result = client.infer(model, [tensor], outputs=[triton.InferRequestedOutput(wanted.name)], request_id="id-2", client_timeout=30)
assert result.get_response().id == "id-2"
np.save(target, result.as_numpy(wanted.name))
assert client.get_model_config(model).config.name == model
assert any(entry.name == model and entry.state == "READY" for entry in client.get_model_repository_index().models)
assert client.get_inference_statistics(model).model_stats[0].inference_count >= 1
assert client.get_server_metadata().name == "outboard"
client.load_model(model)
try:
    client.infer(model, [])
except triton.InferenceServerException as error:
    assert error.status() == "StatusCode.INVALID_ARGUMENT" and given.name in error.message(), error
else:
    raise AssertionError("a missing input was accepted")
client.close()
