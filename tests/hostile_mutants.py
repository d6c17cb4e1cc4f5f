"""What chance makes of files: cut off, with a bit turned, led astray, packed once more. The same for the same seed; see `hostile_models`."""

import bz2
import gzip
import lzma
import pickle
import random
import zlib
from collections.abc import Callable, Iterator

from tests.hostile_models import TOML, Hostile, Payload, external, flipped, layer, zipped

_SEED = 5
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def mutants() -> Iterator[Hostile]:
    """110 of them, none of which is code that is run."""
    chance = random.Random(_SEED)
    whole = layer().SerializeToString()
    for cut in sorted(chance.sample(range(20, len(whole) - 1), 25)):
        yield Hostile(f"more-cut-{cut}", [("m.onnx", whole[:cut])], "cut off")
    for number in range(20):
        yield Hostile(f"more-flipped-{number}", [("m.onnx", flipped(whole, chance))], "")
    for number in range(15):
        yield Hostile(f"astray-{number}", [("m.onnx", external(_astray(chance)))], "asks for weights")
    code = {"model.py": b"raise SystemExit\n", "model.toml": TOML}
    archive = zipped({**code, "w": chance.randbytes(3000)})
    for cut in sorted(chance.sample(range(100, len(archive) - 22), 15)):
        yield Hostile(f"zip-cut-{cut}", [("m.zip", archive[:cut])], "cut off")
    for number in range(12):
        yield Hostile(f"zip-astray-{number}", [("m.zip", zipped({**code, _astray(chance): b"x"}))], "leads out of its folder")
    for protocol in (1, 3):
        yield Hostile(f"pickle-{protocol}", [("m.bin", pickle.dumps(Payload(), protocol))], "outboard models convert FILE")
    for protocol in (2, 5):
        for name, pack in _PACKERS.items():
            yield Hostile(
                f"joblib-{name}-{protocol}", [("m.onnx", pack(pickle.dumps(Payload(), protocol)))], "outboard models convert FILE"
            )
    for number in range(13):
        begin = (b"PK\x03\x04", b"<PMML ", b"\x93NUMPY", b"\x80")[number % 4]
        yield Hostile(f"noise-{number}", [("m.onnx", begin + chance.randbytes(chance.randrange(1, 4000)))], "")


def _astray(chance: random.Random) -> str:
    """A path that leads out of the folder that it is in."""
    name = "".join(chance.choices(_LETTERS, k=5))
    up = "../" * chance.randrange(1, 8)
    return chance.choice((f"{up}{name}", f"/{name}/{name}.bin", f"{name}/../../{up}{name}", f"./{up}etc/passwd"))
