"""Apache's own Thrift runtime with code that its compiler made from inference.thrift: HOST PORT MODEL INPUT.npy OUTPUT.npy GENERATED."""

import sys

import numpy as np
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport

host, port, model, source, target, generated = sys.argv[1:]
sys.path.insert(0, generated)
from inference import Inference  # noqa: E402
from inference.ttypes import (  # noqa: E402
    InferRequest,
    ModelMetadataRequest,
    ModelReadyRequest,
    RepositoryIndexRequest,
    ServerLiveRequest,
    ServingError,
    Tensor,
)

transport = TFramedTransport(TSocket(host, int(port)))
transport.open()
client = Inference.Client(TBinaryProtocol(transport))
assert client.ServerLive(ServerLiveRequest()).live and client.ModelReady(ModelReadyRequest(name=model)).ready
metadata = client.ModelMetadata(ModelMetadataRequest(name=model))
data = np.load(source)
tensor = Tensor(metadata.inputs[0].name, metadata.inputs[0].datatype, list(data.shape), data.tobytes())
answer = client.ModelInfer(InferRequest(model_name=model, id="id-3", inputs=[tensor], timeout_ms=30000))
assert answer.id == "id-3" and answer.model_version == "1"
(output,) = answer.outputs
np.save(target, np.frombuffer(output.data, np.float32).reshape(output.shape))
assert any(index.name == model and index.state == "READY" for index in client.RepositoryIndex(RepositoryIndexRequest()).models)
try:
    client.ModelInfer(InferRequest(model_name="nobody", id="id-4"))
except ServingError as error:
    assert error.code == "model_not_found" and "nobody" in error.message and error.request_id == "id-4", error
else:
    raise AssertionError("an unknown model answered")
assert client.ServerLive(ServerLiveRequest()).live, "the connection is still good"
transport.close()
