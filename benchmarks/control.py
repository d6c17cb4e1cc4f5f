"""Changing the model of a running host, and seeing that it changed."""

import json

import grpc

from benchmarks.payloads import HttpRequest, RefusedError, post
from benchmarks.processes import wait_until
from idl.generated import inference_pb2 as pb

_LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
_IN_A_ROW = 20
"""Answers that must be the new version's, one after the other, before every worker counts as changed."""


def load_model(address: str, model: str) -> None:
    """Has the host serve what its repository holds now; returns when it does."""
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary(_LOAD)(pb.RepositoryModelLoadRequest(model_name=model).SerializeToString(), timeout=60)


def wait_for_version(base: str, request: HttpRequest, version: str) -> None:
    def is_new() -> bool:
        try:
            return all(str(json.loads(post(base, request)[1])["version"]) == version for _ in range(_IN_A_ROW))
        except RefusedError:
            return False

    wait_until(is_new, f"version {version} everywhere", timeout_s=60)
