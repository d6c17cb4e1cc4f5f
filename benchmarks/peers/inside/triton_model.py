"""A model of Triton's Python backend: onnxruntime with one thread. Triton imports it in a process of its own for each model.

`parameters` in config.pbtxt name the ONNX file. What Triton's dynamic batcher hands over together is run together.
"""

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            config["parameters"]["file"]["string_value"], options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def execute(self, requests):
        given = [{name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs} for request in requests]
        if len(given) == 1:
            return [self._response(self._session.run(None, given[0]))]
        joined = {name: np.concatenate([item[name] for item in given]) for name in self._inputs}
        ends = np.cumsum([len(item[self._inputs[0]]) for item in given])[:-1]
        parts = [np.split(array, ends) for array in self._session.run(None, joined)]
        return [self._response(arrays) for arrays in zip(*parts, strict=True)]

    def _response(self, arrays):
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(self._outputs, arrays, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
