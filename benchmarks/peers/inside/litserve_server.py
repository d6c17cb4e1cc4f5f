"""A LitServe server: `litserve_server.py MODELS.json PORT`; onnxruntime with one thread, a worker process for each model.

It reads and answers the open protocol's JSON, so that every server parses and writes the same bytes.
"""

import json
import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime

_TYPES = {"FP32": np.float32, "INT64": np.int64}
_NAMES = {"float32": "FP32", "int64": "INT64"}


class OnnxApi(litserve.LitAPI):
    def __init__(self, name, file):
        super().__init__(api_path=f"/v2/models/{name}/infer")
        self._file = file

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self._file, options, providers=["CPUExecutionProvider"])
        self._names = [item.name for item in self._session.get_outputs()]

    def decode_request(self, request):
        return {item["name"]: np.array(item["data"], _TYPES[item["datatype"]]).reshape(item["shape"]) for item in request["inputs"]}

    def predict(self, inputs):
        return self._session.run(None, inputs)

    def encode_response(self, arrays):
        return {
            "outputs": [
                {"name": name, "datatype": _NAMES[array.dtype.name], "shape": array.shape, "data": array.ravel().tolist()}
                for name, array in zip(self._names, arrays, strict=True)
            ]
        }


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    server = litserve.LitServer([OnnxApi(item["name"], item["file"]) for item in found], accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
