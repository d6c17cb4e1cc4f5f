"""A KServe Python server: `kserve_server.py MODELS.json --http_port N --grpc_port N ...`; onnxruntime with one thread for each model."""

import json
import sys
from pathlib import Path

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid


class OnnxModel(Model):
    def __init__(self, name, file):
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._outputs = [
            (item.name, {"tensor(float)": "FP32", "tensor(int64)": "INT64"}[item.type]) for item in self._session.get_outputs()
        ]
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        arrays = self._session.run(None, {item.name: item.as_numpy() for item in payload.inputs})
        is_raw = payload.inputs[0]._raw_data is not None  # a caller who sent raw contents gets raw contents
        outputs = []
        for (name, datatype), array in zip(self._outputs, arrays, strict=True):
            output = InferOutput(name, list(array.shape), datatype)
            output.set_data_from_numpy(array, binary_data=is_raw)
            outputs.append(output)
        return InferResponse(payload.id or generate_uuid(), self.name, outputs, use_binary_outputs=is_raw)


if __name__ == "__main__":
    # kserve itself reads the options when it is imported
    models = json.loads(Path(sys.argv[1]).read_text())
    ModelServer().start([OnnxModel(item["name"], item["file"]) for item in models])
