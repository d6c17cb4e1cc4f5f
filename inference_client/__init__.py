"""The Python client of a model host: Thrift or gRPC, numpy in and out, deadlines, several hosts.

>>> with Client("thrift://127.0.0.1:9090") as client:  # doctest: +SKIP
...     result = client.infer("efficientnet-lite0", {"image": pixels}, timeout_s=1.0)
...     result.outputs["probabilities"]
"""

import logging

from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, ScriptReport, Tensor, Validation
from inference_client.channel import RawAnswers
from inference_client.client import Client
from inference_client.result import InferResult
from inference_client.streams import Answers
from inference_client.tls import Tls

__all__ = [
    "Answers",
    "Client",
    "Code",
    "InferRequest",
    "InferResponse",
    "InferResult",
    "RawAnswers",
    "ScriptReport",
    "ServingError",
    "Tensor",
    "Tls",
    "Validation",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library: who wants to see its log configures one
