"""Callers that reach the executors past the engine learn what a process died of, in the engine's words."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from idl import last_words
from idl.codes import Code, ServingError
from idl.lane_routes import LocalLane
from idl.messages import InferRequest
from inference_client import Client
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.front.configuration import Configuration
from inference_server.front.thrift_lane import ThriftLane
from tests.engines import LIMIT, engine_over
from tests.inference_server.grpc_front_peer import serving
from tests.inference_server.test_reserved_models import eat, eater, settings
from tests.inference_server.test_thrift_lane import Watched
from tests.inference_server.test_thrift_server import serving as serving_thrift


@pytest.fixture(name="nothing_left_over", autouse=True)
def a_front_lets_go_of_its_lanes_when_it_ends() -> None:
    """Not within a test: some are ended by the collector."""


@pytest.fixture
def greedy(zygote: Zygote, watcher: Watcher, repository: Path) -> Iterator[Engine]:
    eater(repository / "greedy" / "1" / "model.onnx")
    settings(repository, "greedy", 'memory = "160MiB"\nmax_batch_size = 1\n')
    with engine_over(zygote, watcher, repository) as engine:
        engine.load_all(0)
        yield engine


@contextmanager
def asking(engine: Engine, zygote: Zygote, folder: Path, kind: str) -> Iterator[Callable[[InferRequest], object]]:
    if kind == "lane":
        lane = LocalLane(str(zygote.run_dir), LIMIT)
        yield lane.infer
        lane.close()
    elif kind == "thrift":
        shortcut = partial(ThriftLane, Configuration(str(zygote.run_dir), "", LIMIT, 20.0, "info"))
        with serving_thrift(Watched(engine), folder, shortcut=shortcut) as (_, _, where), Client(f"thrift+unix://{where}") as client:  # type: ignore[arg-type]
            yield client.infer_raw
    else:
        with serving(engine, zygote, kind) as front, Client(f"grpc://127.0.0.1:{front.ports[0]}") as client:
            yield client.infer_raw


@pytest.mark.parametrize("kind", ["lane", "nginx", "grpcio", "thrift"])
def test_over_its_memory_limit(greedy: Engine, zygote: Zygote, tmp_path: Path, kind: str) -> None:
    with asking(greedy, zygote, tmp_path, kind) as ask:
        assert ask(eat("greedy", 10)) is not None
        with pytest.raises(ServingError) as refused:
            ask(eat("greedy", 1000))
        assert refused.value.code is Code.MODEL_FAILED
        assert refused.value.message.endswith("died while it had the request: it was killed: over its memory limit of 160 MiB")
        assert kind == "lane" or ask(eat("greedy", 10)) is not None, "it is back; the lane leaves to the server what is starting again"


def test_words_are_read_waited_for_and_forgotten(tmp_path: Path) -> None:
    lane = tmp_path / "x1.lane"
    assert last_words.read(str(lane)) is None
    begun = time.monotonic()
    assert last_words.wait(str(lane)) == "" and last_words.WAIT_S <= time.monotonic() - begun < last_words.WAIT_S + 5
    last_words.write(lane, "killed")
    assert (
        last_words.wait(str(lane)) == "killed" and last_words.message("m", "") == "the process of model 'm' died while it had the request"
    )
    last_words.forget(tmp_path, 1000)
    assert last_words.read(str(lane)) == "killed"
    os.utime(f"{lane}{last_words.SUFFIX}", (1, 1))
    last_words.forget(tmp_path, 1000)
    assert not list(tmp_path.iterdir())
    last_words.write(tmp_path / "nowhere" / "x1.lane", "killed")  # no room: nobody learns it
