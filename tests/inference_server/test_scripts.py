"""Models that are scripts of users: what they are given, what becomes of their answers and mistakes, and what a load says."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from idl.codes import Code, ServingError
from idl.messages import Tensor
from inference_server import logs
from inference_server.engine import Engine
from inference_server.executors.process import Watcher, Zygote
from inference_server.types import FileHeader
from outboard.models import _files
from tests.engines import engine_over, own_zygote
from tests.needs import boxed
from tests.script_models import GOOD, arrays, ask, asked, load, refused, script_model

pytestmark = boxed


def test_it_changes_what_goes_in_and_what_comes_out(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    assert ask(engine, x=np.float32([1, 2])) == {"x": ("FP32", [2, 3])}
    assert ask(engine, x=np.int16([[5]])) == {"x": ("INT16", [[6]])}, "the same function takes any type and shape"
    assert ask(engine, "postprocess", y=np.float32([1, 20, 3])) == {"label": ("BYTES", b"high"), "best": ("INT64", 1)}
    metadata = engine.model_metadata("s", "")
    assert (metadata.platform, metadata.inputs, metadata.outputs) == ("script", (), ())
    assert metadata.properties["tensors"] == "open: any names, types and shapes"
    assert metadata.properties["functions"] == "preprocess, postprocess"
    assert metadata.properties["batching"] == "off: a script answers one request at a time"
    config = engine.model_config("s", "")
    assert (config["backend"], config["platform"], config["default_model_filename"]) == ("script", "script", "script.py")
    assert engine.model_statistics("s", "")[0].success.count == 3


def test_a_function_that_is_not_there_gives_back_what_it_was_given(engine: Engine, repository: Path) -> None:
    load(engine, repository, "def postprocess(outputs): return {'n': len(outputs)}")
    assert engine.model_metadata("s", "").properties["functions"] == "postprocess"
    picture = os.urandom(300_000)
    found = ask(engine, picture=picture, words=np.array([b"a", b""], object), none=np.zeros((0, 3), np.uint8))
    assert found == {"picture": ("BYTES", picture), "words": ("BYTES", [b"a", b""]), "none": ("UINT8", [])}
    assert ask(engine, "postprocess", a=1.5, b=2) == {"n": ("INT64", 2)}
    assert ask(engine, "postprocess") == {"n": ("INT64", 0)}, "no tensor at all"


def test_what_numpy_makes_an_array_of_is_an_answer(engine: Engine, repository: Path) -> None:
    code = """
    import numpy as np

    def postprocess(outputs):
        return {
            "whole": 3, "float": 2.5, "true": True, "list": [[1, 2], [3, 4]], "text": "ü", "bytes": b"a\\0", "texts": ["a", b"b\\0"],
            "large": 2**63, "half": np.float16(1.5), "back": np.arange(6, dtype=">i4").reshape(2, 3)[::-1], "empty": [], "tuple": (1, 2.5),
            "fixed": np.array(["x", "yz"]), "none": np.zeros((0, 2), np.uint8), "view": memoryview(b"v"), "bool": np.array([True, False]),
        }
    """
    load(engine, repository, code)
    assert ask(engine, "postprocess") == {
        "whole": ("INT64", 3),
        "float": ("FP64", 2.5),
        "true": ("BOOL", True),
        "list": ("INT64", [[1, 2], [3, 4]]),
        "text": ("BYTES", "ü".encode()),
        "bytes": ("BYTES", b"a\0"),
        "texts": ("BYTES", [b"a", b"b\0"]),
        "large": ("UINT64", 2**63),
        "half": ("FP16", 1.5),
        "back": ("INT32", [[3, 4, 5], [0, 1, 2]]),
        "empty": ("FP64", []),
        "tuple": ("FP64", [1, 2.5]),
        "fixed": ("BYTES", [b"x", b"yz"]),
        "none": ("UINT8", []),
        "view": ("BYTES", b"v"),
        "bool": ("BOOL", [True, False]),
    }


def test_what_a_request_must_say(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    for request, words in (
        (asked("s", "infer", {"x": 1}), "parameter 'function' is 'infer', not \"preprocess\" or \"postprocess\""),
        (asked("s", "preprocess", {"x": 1}, outputs=("z",)), "preprocess gave no output 'z'; it gave 'x'"),
        (asked("s", "preprocess", {"x": 1}, outputs=("x", "x")), "an output stands twice in the request"),
    ):
        with pytest.raises(ServingError) as caught:
            engine.model_infer(request)
        assert (caught.value.code, caught.value.message) == (Code.INVALID_INPUT, words)
    plain = asked("s", "preprocess", {"x": 1})
    one = plain.inputs[0]
    for inputs, parameters, words in (
        ((one,), {}, 'the parameter \'function\' is missing: "preprocess" or "postprocess"'),
        ((one, one), plain.parameters, "input 'x' stands twice in the request"),
        ((Tensor("x", "FP32", (3,), b"1234"),), plain.parameters, "tensor 'x' of FP32 [3] needs 12 bytes, got 4"),
        ((Tensor("x", "FP33", (1,), b"1234"),), plain.parameters, "tensor 'x' has datatype 'FP33', which is none of the protocol's"),
        ((Tensor("", "INT8", (1,), b"1"),), plain.parameters, "an input has no name"),
    ):
        with pytest.raises(ServingError) as caught:
            engine.model_infer(type(plain)("s", inputs, parameters=parameters))
        assert (caught.value.code, caught.value.message) == (Code.INVALID_INPUT, words)
    assert ask(engine, x=1) == {"x": ("INT64", 2)}
    only = engine.model_infer(asked("s", "postprocess", {"y": [1.0, 0.0]}, outputs=("best",)))
    assert [tensor.name for tensor in only.outputs] == ["best"]


def test_its_mistakes_are_named_without_a_path_of_the_host(engine: Engine, repository: Path) -> None:
    code = """
    from outboard_model import InvalidInput
    import numpy as np

    def preprocess(inputs):
        what = inputs["do"].item().decode()
        if what == "refuse": raise InvalidInput("it is no picture")
        if what == "raise": raise ValueError("bad\\nthing")
        if what == "import": from numpy import nothing_of_this_name
        if what == "nothing": return None
        if what == "name": return {1: 2}
        if what == "ragged": return {"y": [[1], [2, 3]]}
        if what == "object": return {"y": object()}
        if what == "mixed": return {"y": ["a", 1]}
        if what == "complex": return {"y": 1j}
        if what == "exit": raise SystemExit(3)
        if what == "huge": return {"y": np.zeros(9 * 2**20, np.uint8)}
        return {"y": 1}
    """
    load(engine, repository, code)
    failed, said = Code.MODEL_FAILED, {what: refused(engine, do=what) for what in ("refuse", "raise", "import", "nothing", "name")}
    said |= {what: refused(engine, do=what) for what in ("ragged", "object", "mixed", "complex", "exit", "huge")}
    assert {what: (error.code, error.message) for what, error in said.items() if what not in ("ragged", "import")} == {
        "refuse": (Code.INVALID_INPUT, "the script refuses its input: it is no picture"),
        "raise": (failed, "the script raised ValueError: bad thing (script.py, line 8)"),
        "nothing": (failed, "preprocess gave a NoneType, not a dict of name -> array"),
        "name": (failed, "preprocess gave an output whose name is 1, not a text"),
        "object": (failed, "output 'y': element 0 is a object, not a number, a text or bytes"),
        "mixed": (failed, "output 'y': element 1 is a int, not a number, a text or bytes"),
        "complex": (failed, "output 'y' is complex128, which no datatype is for"),
        "exit": (failed, "the script raised SystemExit: 3 (script.py, line 16)"),
        "huge": (Code.TOO_LARGE, "the script gave 9437184 bytes, at most 8388608 are sent"),
    }
    assert said["ragged"].message.startswith("output 'y' cannot be made an array: ")
    assert said["import"].message.startswith("the script raised ImportError: cannot import name 'nothing_of_this_name' from 'numpy' (lib/")
    assert not any(str(root) in error.message for error in said.values() for root in (repository, Path.cwd(), sys.prefix))
    assert ask(engine, do="") == {"y": ("INT64", 1)}


@pytest.mark.parametrize(
    ("code", "toml", "reason"),
    [
        ("x = 1\ndef preprocess(:", "", "script.py, line 2: SyntaxError: "),
        ("x = 1", "", "it has neither preprocess nor postprocess"),
        ("preprocess = 3", "", "preprocess is a int, not a function"),
        ("def preprocess(): pass", "", "preprocess takes exactly one argument, a dict of name -> array"),
        ("def postprocess(a, b=1): pass", "", "postprocess takes exactly one argument, a dict of name -> array"),
        ("def preprocess(*a): pass", "", "preprocess takes exactly one argument, a dict of name -> array"),
        ("def preprocess(a): yield 1", "", "preprocess gives its answer bit by bit: a function with return is wanted"),
        (
            "\nimport nothing_of_this_name",
            "",
            "the script raised ModuleNotFoundError: No module named 'nothing_of_this_name' (script.py, line 2)",
        ),
        ("#" + "x" * 2**18, "", "it has 262145 bytes, at most 262144 are taken"),
        ("while True: pass", "[script]\ntimeout = 0.3", "the script took longer than 0.3 s"),
        ("x = bytearray(2**30)", "", "the script used more memory than 256 MiB"),
        (GOOD, "[inputs.x]\ndatatype = 'FP32'\nshape = [1]", "model.toml: inputs says nothing to a script"),
        (GOOD, "max_batch_size = 4", "model.toml: max_batch_size says nothing to a script"),
        (GOOD, "[python]\nsandbox = 'off'", "model.toml: python says nothing to a script"),
        (GOOD, "executor = 'thread'", "model.toml: executor says nothing to a script"),
        (GOOD, "memory = '128MiB'\n[script]\nmemory = '65MiB'", "script.memory is more than memory leaves for a call: 64 MiB"),
        (GOOD, "backend = 'script'\nmodel_file = 'a.onnx'", "model_file = 'a.onnx', and backend says that it is a script, a .py file"),
        (GOOD, "[script]\ntime = 1", "script has an unknown key 'time'; known are memory, timeout"),
    ],
)
def test_what_cannot_be_loaded_says_why(engine: Engine, repository: Path, code: str, toml: str, reason: str) -> None:
    with pytest.raises(ServingError) as caught:
        load(engine, repository, code, toml)
    assert caught.value.code is Code.INVALID_MODEL
    assert reason in caught.value.message and str(repository) not in caught.value.message


def test_a_script_with_a_byte_order_mark_and_line_ends_of_another_system(engine: Engine, repository: Path) -> None:
    script_model(repository / "s").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    engine.repository_model_load("s", {})
    assert ask(engine, x=1) == {"x": ("INT64", 2)}


def test_a_stream_of_a_script_is_its_one_answer(engine: Engine, repository: Path) -> None:
    load(engine, repository)
    answers = engine.model_stream(asked("s", "preprocess", {"x": 1}))
    assert arrays(answers.next() or pytest.fail("no answer"))["x"] == 2
    assert answers.next() is None
    answers.close()


def test_a_script_of_the_users_repository(zygote: Zygote, watcher: Watcher, repository: Path, tmp_path: Path) -> None:
    with engine_over(zygote, watcher, repository, user_models=tmp_path / "users") as engine:
        data = GOOD.encode()
        engine.put_file(FileHeader("ann.iris.script", 1, "script.py", len(data), hashlib.sha256(data).hexdigest(), True), iter([data]))
        engine.repository_model_load("ann.iris.script", {})
        assert arrays(engine.model_infer(asked("ann.iris.script", "preprocess", {"x": 1})))["x"] == 2


def test_a_script_is_pushed_under_its_own_name() -> None:
    assert [remote for *_, remote in _files(Path("a/script.py"), None, 1, is_new=True)] == ["script.py"]
    assert [remote for *_, remote in _files(Path("a/iris.py"), None, 1, is_new=True)] == ["model.py"]


def test_files_beside_it_are_read_and_settings_may_name_it(engine: Engine, repository: Path) -> None:
    code = """
    from pathlib import Path
    from beside import factor

    def preprocess(inputs):
        return {"names": Path("names.txt").read_text().split(), "factor": factor}
    """
    file = script_model(repository / "s", code, 'backend = "script"\nmodel_file = "changes.py"').rename(
        repository / "s" / "1" / "changes.py"
    )
    (file.parent / "names.txt").write_text("cup mug")
    (file.parent / "beside.py").write_text("factor = 7")
    engine.repository_model_load("s", {})
    assert ask(engine) == {"names": ("BYTES", [b"cup", b"mug"]), "factor": ("INT64", 7)}


def test_a_script_behind_a_link_out_of_the_repository_is_not_loaded(engine: Engine, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(GOOD)
    script_model(repository / "s").unlink()
    (repository / "s" / "1" / "script.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(ServingError) as caught:
        engine.repository_model_load("s", {})
    assert "link" in caught.value.message and str(tmp_path) not in caught.value.message


def test_what_it_prints_is_in_the_log_at_debug_and_nowhere_else(
    watcher: Watcher, repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with own_zygote(run_dir) as zygote, engine_over(zygote, watcher, repository) as engine:
        load(engine, repository, "def preprocess(inputs):\n  print('secret', len(inputs))\n  print('x' * 10**6, '!')\n  return {'y': 1}")
        assert ask(engine) == {"y": ("INT64", 1)}
        assert "secret" not in capfd.readouterr().err
        logs.publish(run_dir, "debug")
        assert ask(engine, x=1) == {"y": ("INT64", 1)}
    (said,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "script printed" in line]
    assert (said["model"], said["version"], said["level"], said["bytes"]) == ("s", 1, "debug", 9 + 10**6 + 3)
    assert said["text"] == "x" * 997 + " !\n", "the end of it"
