"""An MLServer runtime: onnxruntime with one thread. The model's `uri` is its ONNX file."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self._names = [item.name for item in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        arrays = self._session.run(None, {item.name: NumpyCodec.decode_input(item) for item in payload.inputs})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(self._names, arrays, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
