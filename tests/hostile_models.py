"""Files that somebody with bad intent, or bad luck, sends as a model; the same for the same seed."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_models import OPSET

SEED = 20_261_121
CANARY = "/tmp/outboard-canary-of-hostile-models"
TOML = b'[inputs.x]\ndatatype = "FP32"\nshape = [-1]\n[outputs.y]\ndatatype = "FP32"\nshape = [-1]\n'
TOO_SLOW = "it was not loaded and run within"
"""What is said of one whose trial took too long: of any, where the machine stood still meanwhile."""
Files = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Hostile:
    """`says`: a word of the reason that its sender must get. `code`: it is code, which needs a sandbox to be looked at."""

    name: str
    files: Files
    says: str
    code: bool = False


class Payload:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"open({CANARY!r}, 'w')",)


def layer(size: int = 64) -> onnx.ModelProto:
    """x [batch, size] times a matrix."""
    weights = numpy_helper.from_array(np.ones((size, size), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", size)) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "layer", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=OPSET, ir_version=9)


def everything() -> Iterator[Hostile]:
    """Two hundred and one: those that somebody thought of, and what chance makes."""
    from tests.hostile_mutants import mutants  # it is made of what is here

    yield from thought_of()
    yield from mutants()


def thought_of() -> Iterator[Hostile]:
    chance = random.Random(SEED)
    yield from _onnx(chance)
    yield from _archives(chance)
    yield from _xml()
    yield from _pickles()
    yield from _others(chance)
    yield from _code()


# ONNX --------------------------------------------------------------------------------------------------------------------------------


def _onnx(chance: random.Random) -> Iterator[Hostile]:
    whole = layer().SerializeToString()
    for cut in sorted(chance.sample(range(20, len(whole) - 1), 5)):
        yield Hostile(f"cut-{cut}", [("m.onnx", whole[:cut])], "cut off")
    for number in range(5):
        yield Hostile(f"flipped-{number}", [("m.onnx", flipped(whole, chance))], "")
    for name, location in {
        "up": "../../secret.bin",
        "absolute": "/etc/passwd",
        "hidden": "a/../../../etc/shadow",
        "memory": "none.bin",
    }.items():
        yield Hostile(f"external-{name}", [("m.onnx", external(location))], "asks for weights")
    yield Hostile("external-10-GB", [("w.bin", bytes(100)), ("m.onnx", external("w.bin", length=10**10))], "which has 100")
    claims = layer()
    claims.graph.initializer[0].dims[:] = [50_000, 50_000]
    yield Hostile("claims-10-GB", [("m.onnx", claims.SerializeToString())], "")
    yield Hostile("takes-100-GB", [("m.onnx", _taking(25_000_000_000))], "memory")
    yield Hostile("takes-5-GB-in-steps", [("m.onnx", _taking(5 * 2**28))], "memory")
    yield Hostile("never-ends", [("m.onnx", _endless())], "")
    unknown = layer()
    unknown.graph.node[0].op_type = "Steal"
    yield Hostile("unknown-operator", [("m.onnx", unknown.SerializeToString())], "Steal")
    loop = layer()
    loop.graph.node[0].input[0] = "y"
    yield Hostile("circle", [("m.onnx", loop.SerializeToString())], "")


def flipped(data: bytes, chance: random.Random) -> bytes:
    """One bit of what is not a weight, so that the file is damaged: onnxruntime, too, refuses it."""
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    while True:
        made = bytearray(data)
        position = chance.choice([*range(60), *range(len(data) - 60, len(data))])
        made[position] ^= 1 << chance.randrange(8)
        try:
            onnxruntime.InferenceSession(bytes(made), quiet, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  whatever it says: it does not take the file
            return bytes(made)


def external(location: str, length: int = 4) -> bytes:
    model = layer()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def _taking(elements: int) -> bytes:
    """A small file whose every run makes a tensor of so many floats."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ("n",)), ("y", ())))
    size = numpy_helper.from_array(np.array([elements], np.int64), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("ReduceSum", ["x"], ["one"], keepdims=0),
        helper.make_node("Add", ["large", "one"], ["more"]),
        helper.make_node("ReduceSum", ["more"], ["y"], keepdims=0),
    ]
    model = helper.make_model(helper.make_graph(nodes, "taking", [x], [y], [size]), opset_imports=OPSET, ir_version=9)
    return bytes(model.SerializeToString())


def _endless() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    true = numpy_helper.from_array(np.array(True), "true")
    body = helper.make_graph(
        [helper.make_node("Sin", ["m_in"], ["m_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("m_in", TensorProto.FLOAT, (1,)),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, ()), helper.make_tensor_value_info("m_out", TensorProto.FLOAT, (1,))],
    )
    node = helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)
    model = helper.make_model(helper.make_graph([node], "endless", [x], [y], [trips, true]), opset_imports=OPSET, ir_version=9)
    return bytes(model.SerializeToString())


# archives ----------------------------------------------------------------------------------------------------------------------------


def zipped(files: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)  # with one date, whenever it is made
            info.compress_type = compression
            archive.writestr(info, data)
    return buffer.getvalue()


def _link(name: str, target: str) -> dict[str | zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return {info: target.encode()}


def _archives(chance: random.Random) -> Iterator[Hostile]:
    code = {"model.py": b"import os\nos.system('touch " + CANARY.encode() + b"')\n", "model.toml": TOML}

    def of(name: str, files: dict[Any, bytes], says: str, change: Callable[[bytes], bytes] = lambda data: data) -> Hostile:
        return Hostile(f"zip-{name}", [("m.zip", change(zipped(files)))], says)

    yield of("up", {**code, "../../evil.py": b"x"}, "leads out of its folder")
    yield of("absolute", {**code, "/etc/evil": b"x"}, "leads out of its folder")
    yield of("backslash", {**code, "..\\evil.py": b"x"}, "leads out of its folder")
    yield of("drive", {**code, "C:evil.py": b"x"}, "leads out of its folder")
    yield of("link", {**code, **_link("weights", "/etc/passwd")}, "is a link")
    yield of("link-instead", {**_link("model.py", "/etc/passwd"), "model.toml": TOML}, "is a link")
    yield of("bomb", {**code, "large": bytes(50 * 2**20)}, "grow to more than")
    yield of("many", {**code, **{f"f{number}": b"" for number in range(5000)}}, "entries")
    yield of("says-many", code, "entries", lambda data: _patched(data, -14, "<HH", 60_000, 60_000))
    yield of("huge-directory", code, "directory", lambda data: _patched(data, -10, "<L", 2**31))
    yield of("encrypted", code, "is encrypted", _flag)
    yield of("overlap", {**code, "other.py": b"y" * 100}, "overlaps", _overlapping)
    yield of("lying-size", {**code, "w": b"y" * 100}, "damaged", lambda data: _lying(data, b"w"))
    yield of("deep", {**code, "a/b/c/d/e.py": b"x"}, "not a name of")
    yield of("odd-names", {**code, "x\ny": b"x"}, "not a name of")
    yield of("no-model", {"readme.txt": b"hello"}, "")
    yield of("empty", {}, "no file in it")
    whole = zipped({**code, "w": bytes(chance.randbytes(5000))})
    yield Hostile("zip-cut", [("m.zip", whole[: chance.randrange(100, 4000)])], "cut off")
    yield Hostile("zip-lzma", [("m.zip", zipped({"model.py": b"x" * 500}, zipfile.ZIP_LZMA))], "compressed in a way")
    twice = zipped({"model.py": b"a", "model.PY": b"b", "model.toml": TOML}).replace(b"model.PY", b"model.py")
    yield Hostile("zip-twice", [("m.zip", twice)], "twice")


def _patched(data: bytes, offset: int, form: str, *values: int) -> bytes:
    made = bytearray(data)
    struct.pack_into(form, made, len(data) + offset, *values)
    return bytes(made)


def _flag(data: bytes) -> bytes:
    made = bytearray(data)
    at = made.find(b"PK\x01\x02")
    made[at + 8] |= 1
    return bytes(made)


def _overlapping(data: bytes) -> bytes:
    """The directory's second entry points into the first's content."""
    made = bytearray(data)
    second = made.find(b"PK\x01\x02", made.find(b"PK\x01\x02") + 4)
    struct.pack_into("<L", made, second + 42, 5)
    return bytes(made)


def _lying(data: bytes, name: bytes) -> bytes:
    made = bytearray(data)
    at = made.rfind(b"PK\x01\x02")
    assert made[at + 46 : at + 46 + len(name)] == name
    struct.pack_into("<L", made, at + 24, 10)
    return bytes(made)


# XML ---------------------------------------------------------------------------------------------------------------------------------


def _xml() -> Iterator[Hostile]:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(20))
    body = '<PMML version="4.4"><Header/><DataDictionary/></PMML>'
    for name, text, says in (
        ("laughs", f"<?xml version='1.0'?><!DOCTYPE PMML [{laughs}]><PMML>&l19;</PMML>", "document type"),
        ("file", '<!DOCTYPE PMML [<!ENTITY f SYSTEM "file:///etc/passwd">]><PMML>&f;</PMML>', "document type"),
        ("address", '<!DOCTYPE PMML SYSTEM "http://127.0.0.1:1/x.dtd"><PMML/>', "document type"),
        ("deep", "<PMML>" + "<a>" * 100_000, "inside one another"),
        ("page", "<html><body>hello</body></html>", "outermost element"),
        ("cut", body[:-9], "not XML"),
        ("no-model", body, ""),
        ("encoding", f'<?xml version="1.0" encoding="utf-7"?>{body}', "utf-7"),
    ):
        yield Hostile(f"xml-{name}", [("m.pmml", text.encode())], says)


# pickles -----------------------------------------------------------------------------------------------------------------------------


def _pickles() -> Iterator[Hostile]:
    convert = "outboard models convert FILE"
    for protocol in (0, 2, 4, 5):
        yield Hostile(f"pickle-{protocol}", [("m.pkl", pickle.dumps(Payload(), protocol))], convert)
    data = pickle.dumps(Payload(), 4)
    for name, packed in {
        "zlib": zlib.compress(data),
        "gzip": gzip.compress(data, mtime=0),
        "bzip2": bz2.compress(data),
        "xz": lzma.compress(data),
    }.items():
        yield Hostile(f"joblib-{name}", [("m.joblib", packed)], convert)
    yield Hostile("pickle-called-onnx", [("model.onnx", data)], convert)
    yield Hostile("gzip-bomb", [("m.gz", gzip.compress(bytes(20_000_000), mtime=0))], "compressed by gzip")
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + data
    yield Hostile("torch-legacy", [("m.pt", legacy)], "torch.save")
    yield Hostile("torch-zip", [("m.pt", zipped({"m/data.pkl": data, "m/data/0": bytes(64), "m/version": b"3"}))], "torch.save")


_SOCKET = """import json, os, socket, stat
for number in range(3, 4096):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            channel = socket.socket(fileno=os.dup(number))
    except OSError:
        pass
"""
_FORGER = _SOCKET + "channel.send((%s).encode())\nchannel.send(b'\\n')\nimport time\ntime.sleep(100)\n"
_FLOOD = _SOCKET + "while True: channel.send(b'x' * 30000)\n"


# others ------------------------------------------------------------------------------------------------------------------------------


def _others(chance: random.Random) -> Iterator[Hostile]:
    array = io.BytesIO()
    np.save(array, np.zeros(4))
    for name, data, says in (
        ("empty", b"", "is empty"),
        ("random", b"\xfe" + chance.randbytes(3000), "nothing that is known"),
        ("zeros", bytes(3000), "nothing that is known"),
        ("text", b"weights = 1, 2, 3\n", "a text"),
        ("json", b'{"learner": {}}', "JSON"),
        ("npy", array.getvalue(), "numpy"),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(100), "picture"),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        ("safetensors", struct.pack("<Q", 20) + b'{"w":{"dtype":"F32"}}', "safetensors"),
        ("program", b"\x7fELF" + bytes(100), "program"),
        ("many-fields", b"\x08\x08" + b"\x28\x01" * 200_000, ""),
    ):
        yield Hostile(f"other-{name}", [("model.onnx", data)], says)


def _code() -> Iterator[Hostile]:
    infer = "\ndef infer(inputs):\n    return {'y': inputs['x']}\n"
    for name, text, says in (
        ("syntax", "def infer(:\n", "SyntaxError"),
        ("raises", "raise KeyError('no')", "KeyError"),
        ("leaves", "import os\nos._exit(0)", "ended"),
        ("dies", "import os\nos.kill(os.getpid(), 11)", "SIGSEGV"),
        ("hangs", "while True: pass", ""),
        ("sleeps", "import time, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1000)", "within"),
        ("eats", "x = bytearray(10**10)", "memory"),
        ("eats-slowly", "x = []\nwhile True: x.append(bytearray(10**7))", "memory"),
        ("calls-out", "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)", "unreachable"),
        ("forks", "import os\nos.fork()", "PermissionError"),
        ("writes", f"open({CANARY!r}, 'w')\nimport os\nos.stat('/etc/passwd')", "FileNotFoundError"),
        ("fills", "with open('/tmp/x', 'wb') as f:\n    while True: f.write(bytes(2**20))", ""),
        ("forges", _FORGER % "'{}'", "cannot be read"),
        ("forges-wrongly", _FORGER % "json.dumps({'latencies': [[1, 2, 'x', 0]], 'parameter_count': -1})", "cannot be read"),
        ("floods", _FLOOD, "too much"),
        ("no-infer", "x = 1", "no function infer"),
    ):
        yield Hostile(
            f"code-{name}", [("model.py", (text + ("" if name == "no-infer" else infer)).encode()), ("model.toml", TOML)], says, True
        )
    yield Hostile("code-undeclared", [("model.py", infer.encode())], "does not say what it gives", True)
    toml = b'[[steps]]\nmodel = "secret"\n'
    yield Hostile("code-steps", [("model.py", infer.encode()), ("model.toml", toml)], "no pipeline", True)
    yield Hostile("code-toml", [("model.py", infer.encode()), ("model.toml", b"x = [[[[")], "model.toml", True)
