"""The official HTTP client, unmodified: ADDRESS MODEL INPUT.npy OUTPUT.npy json|binary."""

import sys

import numpy as np
import tritonclient.http as triton

address, model, source, target, form = sys.argv[1:]
binary = form == "binary"
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
metadata = client.get_model_metadata(model)
(given,), (wanted,) = metadata["inputs"], metadata["outputs"]
data = np.load(source)
tensor = triton.InferInput(given["name"], list(data.shape), given["datatype"])
tensor.set_data_from_numpy(data, binary_data=binary)
result = client.infer(model, [tensor], outputs=[triton.InferRequestedOutput(wanted["name"], binary_data=binary)], request_id="id-1")
assert result.get_response()["id"] == "id-1" and result.get_response()["model_version"] == "1"
np.save(target, result.as_numpy(wanted["name"]))
assert client.get_model_config(model)["name"] == model
assert any(entry["name"] == model and entry["state"] == "READY" for entry in client.get_model_repository_index())
assert client.get_inference_statistics(model)["model_stats"][0]["inference_count"] >= 1
assert client.get_server_metadata()["name"] == "outboard"
try:
    client.infer("nobody", [tensor])
except triton.InferenceServerException as error:
    assert "nobody" in error.message(), error
else:
    raise AssertionError("an unknown model answered")
client.close()
