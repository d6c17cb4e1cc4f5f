"""What a file is, seen from its content: its name says nothing. Nothing is run and nothing is unpickled to find out.

Sources: ONNX (onnx.proto), PMML (XML), zip (APPNOTE.TXT), Python's pickle module (opcodes PROTO and those of protocol 0), joblib.
"""

import bz2
import codecs
import lzma
import mmap
import re
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from idl import archives
from idl.archives import BadArchive
from inference_server.backends import onnx_summary

ONNX, PMML, PYTHON, TORCHSCRIPT, EXPORTED = "onnx", "pmml", "python", "torchscript", "torch_export"
MODEL_FILES = {ONNX: "model.onnx", PMML: "model.pmml", PYTHON: "model.py", TORCHSCRIPT: "model.pt", EXPORTED: "model.pt2"}
"""Format -> the name that its file has to have."""
CODE = frozenset({PYTHON, TORCHSCRIPT, EXPORTED})
"""Formats that are code: in a box or not at all."""
CONVERT = "outboard models convert FILE"
_HEAD = 4096
_PICKLED = re.compile(
    rb"\x80[\x02-\x05]|\(*(?:c[A-Za-z_][\w.]*\r?\n[A-Za-z_][\w.]*\r?\n|[dl]p\d+\r?\n|i[A-Za-z_][\w.]*\r?\n[A-Za-z_][\w.]*\r?\n)"
)
_LEGACY_TORCH = re.compile(rb"\x80[\x02-\x05]\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
"""A pickle of torch.save before it wrote zip archives: its magic number comes first."""
_KNOWN = (
    (b"\x93NUMPY", "an array of numpy (.npy)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras writes such; tf2onnx makes ONNX of its models)"),
    (b"GGUF", "a GGUF file"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"\x04\x22\x4d\x18", "a file compressed by lz4; a pickle of joblib may be: " + CONVERT),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)


class Unrecognised(Exception):
    """No format that is served; the message says what was seen."""


def recognised(folder: Path, names: Sequence[str]) -> tuple[str, str]:
    """(format, which of `names` it is) of files in `folder`; the first that is a model, the others are what belongs to it.

    Raises Unrecognised with what the first of them is, OSError.
    """
    if PYTHON_FILE in names:
        _check_text(folder / PYTHON_FILE)
        return PYTHON, PYTHON_FILE
    for name in (each for each in names if "/" not in each):
        with suppress(Unrecognised):
            if found := kind(folder / name, name):
                return found, name
    kind(folder / names[0], names[0])
    raise Unrecognised(f"{names[0]} is no model")


PYTHON_FILE = MODEL_FILES[PYTHON]


def kind(path: Path, name: str) -> str:
    """The format of one file, no archive of other files. Raises Unrecognised, OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if not head:
            raise Unrecognised(f"{name} is empty: it has 0 bytes")
        if is_zip(head):
            return _archived(path, name)
        _refuse_pickle(head, name)
        if _is_xml(head):
            return PMML
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            found = onnx_summary.looks_like_onnx(data)
    if found == "yes":
        return ONNX
    if found:
        raise Unrecognised(f"{name} begins as an ONNX file does, and is damaged or cut off")
    raise Unrecognised(f"{name} is {_seen(head)}; ONNX, PMML, TorchScript, torch.export or a zip archive with {PYTHON_FILE} is wanted")


def is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def in_archive(names: Collection[str]) -> str:
    """The format of a zip archive that is a model itself, "" where it only holds files. Raises Unrecognised for what is none."""
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return TORCHSCRIPT
    if last & {"archive_format", "serialized_exported_program.json"} or any(
        name.endswith(".json") and "/models/" in f"/{name}" for name in names
    ):
        return EXPORTED
    if "data.pkl" in last:
        raise Unrecognised(
            "is a pickle of torch.save, which is code and is not loaded: save torch.jit.script(model), torch.export it, or export it to ONNX"
        )
    if "model.weights.h5" in last:
        raise Unrecognised("is a Keras model: tf2onnx makes ONNX of it")
    if names and all(name.endswith(".npy") for name in names):
        raise Unrecognised("holds arrays of numpy (.npz) and no model")
    if "[Content_Types].xml" in last:
        raise Unrecognised("is a document of an office program")
    return ""


def _archived(path: Path, name: str) -> str:
    try:
        found = in_archive(archives.names(path))
    except (BadArchive, Unrecognised) as error:
        raise Unrecognised(f"{name} {error}" if isinstance(error, Unrecognised) else f"{name}: {error}") from error
    if not found:
        raise Unrecognised(f"{name} is a zip archive without {PYTHON_FILE}")
    return found


def _refuse_pickle(head: bytes, name: str) -> None:
    if _LEGACY_TORCH.match(head):
        raise Unrecognised(
            f"{name} is a pickle of torch.save, which is code and is not loaded: export the model to ONNX, or torch.export it"
        )
    if _PICKLED.match(head):
        raise Unrecognised(f"{name} is a pickle, which is code and is not loaded: make ONNX of it with {CONVERT}, where you trust it")
    unpacked, by = _unpacked(head)
    if _PICKLED.match(unpacked):
        raise Unrecognised(
            f"{name} is a pickle compressed by {by} (joblib), which is code and is not loaded: make ONNX of it with {CONVERT}, where you trust it"
        )
    if by:
        raise Unrecognised(f"{name} is a file compressed by {by}: unpack it first")


def _unpacked(head: bytes) -> tuple[bytes, str]:
    """(the first bytes, what compressed them), ("", "") for nothing that is known. However much it holds, little is unpacked."""
    with suppress(zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, 256), "gzip"
        if head[:1] == b"\x78" and len(head) > 2 and int.from_bytes(head[:2]) % 31 == 0:
            return zlib.decompressobj().decompress(head, 256), "zlib"
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, 256), "bzip2"
        if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
            return lzma.LZMADecompressor(memlimit=64 * 2**20).decompress(head, 256), "xz"
    return b"", ""


def _is_xml(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return head.decode("utf-16", "ignore").lstrip().startswith("<")
    return bool(re.match(rb"<[A-Za-z?!]", head.removeprefix(codecs.BOM_UTF8).lstrip()))


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise Unrecognised(f"{path.name} is empty: it has {len(head)} bytes")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        raise Unrecognised(f"{path.name} is {_seen(head)}, and no Python file in UTF-8") from None
    if b"\0" in head:
        raise Unrecognised(f"{path.name} has zero bytes in it, and is no Python file")


def _seen(head: bytes) -> str:
    for begin, what in _KNOWN:
        if head.startswith(begin):
            return what
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model (tf2onnx makes ONNX of it)"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if len(head) > 9 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 2**30:
        return "a safetensors file: weights without a network"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return f"nothing that is known: it begins with the bytes {head[:8].hex(' ')}"
    if "\0" not in text:
        return "JSON" if text.lstrip().startswith(("{", "[")) else "a text"
    return f"nothing that is known: it begins with the bytes {head[:8].hex(' ')}"
