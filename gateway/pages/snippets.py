"""How a program calls a model or a deployment: pieces of code with its real names, shapes and addresses, each as it can be run.

`snippets` is given an `Endpoint`, and says the same call with curl, Python, JavaScript, gRPC and Thrift. Names of tensors are anybody's
text: they are written as literals of the language that they stand in.
"""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gateway.pages.signatures import Tensor, element, sample
from gateway.settings import Settings

PICTURE = "picture.jpg"
"""What the file of a picture is called."""
_FORM_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NUMPY = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "float32",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is called. `base_url`: http://host:port; `path`: to POST to; `rpc_name`: what the model host calls it, "" where it cannot be
    called there. `grpc` and `thrift`: addresses such as grpc://host:port, "" where they are not known. `streams`: `path` answers with
    server-sent events, and takes the inputs as they are."""

    base_url: str
    path: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    needs_token: bool
    rpc_name: str = ""
    grpc: str = ""
    thrift: str = ""
    rpc_needs_token: bool = False
    streams: bool = False

    @property
    def url(self) -> str:
        return self.base_url + self.path


@dataclass(frozen=True, slots=True)
class Snippet:
    """`language`: of the code, for screen readers and colours."""

    key: str
    name: str
    language: str
    text: str


def snippets(endpoint: Endpoint) -> list[Snippet]:
    """curl, Python and JavaScript, then gRPC and Thrift where the model host can be asked for it."""
    made = [
        Snippet("curl", "curl", "shell", _curl(endpoint)),
        Snippet("python", "Python", "python", _python(endpoint)),
        Snippet("javascript", "JavaScript", "javascript", _javascript(endpoint)),
    ]
    if endpoint.rpc_name and endpoint.grpc:
        made.append(Snippet("grpc", "gRPC", "python", _grpc(endpoint)))
    if endpoint.rpc_name and endpoint.thrift:
        made.append(Snippet("thrift", "Thrift", "python", _thrift(endpoint)))
    return made


def rpc_addresses(settings: Settings, host: str) -> tuple[str, str]:
    """(gRPC, Thrift): where people reach the model host, "" where that is not known; `host`: the one that the page was asked of, which
    stands in for "every address"."""
    return _reached(settings.public_grpc, "grpc", settings.model_hosts, host), _reached(
        settings.public_thrift, "thrift", settings.model_hosts, host
    )


def _reached(given: str, protocol: str, hosts: Sequence[str], host: str) -> str:
    found = given or next((each for each in hosts if each.startswith((f"{protocol}://", f"{protocol}s://"))), "")
    parts = urlsplit(found)
    if not parts.hostname or not parts.port:
        return ""
    name = host if parts.hostname in ("0.0.0.0", "::") else parts.hostname
    return f"{parts.scheme}://[{name}]:{parts.port}" if ":" in name else f"{parts.scheme}://{name}:{parts.port}"


# the values --------------------------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A literal of JSON, JavaScript and, of texts and numbers, Python."""
    return json.dumps(value, ensure_ascii=False)


def _spelled(tensor: Tensor) -> str:
    """A sample as an expression of Python: spelled out, or lists multiplied."""
    if tensor.is_small:
        return repr(sample(tensor)) if tensor.datatype != "BYTES" else _text(sample(tensor))
    made = _text(element(tensor)) if tensor.datatype == "BYTES" else repr(element(tensor))
    for size in reversed(tensor.sample_shape):
        made = f"[{made}] * {size}" if size != 1 else f"[{made}]"
    return made


def _as_form(endpoint: Endpoint) -> bool:
    """Whether it goes as a form with a file, the shortest way to send a picture."""
    return (
        not endpoint.streams
        and any(each.picture for each in endpoint.inputs)
        and all(
            _FORM_NAME.fullmatch(each.name) and each.name not in ("top_k", "outputs", "filetype") and (each.picture or _fits_field(each))
            for each in endpoint.inputs
        )
    )


def _fits_field(tensor: Tensor) -> bool:
    return tensor.is_small and (tensor.datatype != "BYTES" or tensor.is_single)


def _field(tensor: Tensor) -> str:
    return str(element(tensor)) if tensor.datatype == "BYTES" else _text(sample(tensor))


def _body(endpoint: Endpoint, spelled: Callable[[Tensor], str], indent: str) -> list[str]:
    """Lines of the request's JSON object, with what `spelled` makes of each input."""
    lines = [f"{indent}    {_text(each.name)}: {spelled(each)}," for each in endpoint.inputs]
    if endpoint.streams:
        return [f"{indent}{{", *lines, f"{indent}}}"]
    return [f'{indent}{{"inputs": {{', *lines, f"{indent}}}}}"]


# HTTP --------------------------------------------------------------------------------------------------------------------------------


def _curl(endpoint: Endpoint) -> str:
    begin = ["curl", *(["-N"] if endpoint.streams else [])]
    lines = [" ".join(begin)]
    if endpoint.needs_token:
        lines.append('-H "Authorization: Bearer $TOKEN"')
    before = ""
    if _as_form(endpoint):
        for each in endpoint.inputs:
            lines.append(f"-F {each.name}=@{PICTURE}" if each.picture else f"--form-string {shlex.quote(f'{each.name}={_field(each)}')}")
    else:
        lines.append("-H 'Content-Type: application/json'")
        if all(each.is_small and not each.picture for each in endpoint.inputs):
            inputs = {each.name: sample(each) for each in endpoint.inputs}
            lines.append(f"-d {shlex.quote(_text(inputs if endpoint.streams else {'inputs': inputs}))}")
        else:
            before = _made_by_python(endpoint)
            lines.append("-d @-")
    lines.append(shlex.quote(endpoint.url))
    return before + " \\\n  ".join(lines)


def _made_by_python(endpoint: Endpoint) -> str:
    """A body that is too long for a command line."""
    body = "\n".join(_body(endpoint, _in_json, ""))
    needs = "import base64, json" if any(each.picture for each in endpoint.inputs) else "import json"
    return f"python3 -c {shlex.quote(f'{needs}{chr(10)}print(json.dumps({body}))')} |\n"


def _in_json(tensor: Tensor) -> str:
    if tensor.picture:
        return f'{{"b64": base64.b64encode(open("{PICTURE}", "rb").read()).decode()}}'
    return _spelled(tensor)


def _python(endpoint: Endpoint) -> str:
    needs = {"import requests"}
    lines = ["answer = requests.post(", f"    {_text(endpoint.url)},"]
    if endpoint.needs_token:
        needs.add("import os")
        lines.append('    headers={"Authorization": "Bearer " + os.environ["TOKEN"]},')
    if _as_form(endpoint):
        pictures = ", ".join(f'{_text(each.name)}: open("{PICTURE}", "rb")' for each in endpoint.inputs if each.picture)
        fields = ", ".join(f"{_text(each.name)}: {_text(_field(each))}" for each in endpoint.inputs if not each.picture)
        lines += [f"    files={{{pictures}}},", *([f"    data={{{fields}}},"] if fields else [])]
    else:
        if any(each.picture for each in endpoint.inputs):
            needs.add("import base64")
        body = _body(endpoint, _in_json, "    ")
        lines += [f"    json={body[0].lstrip()}", *body[1:-1], f"{body[-1]},"]
    if endpoint.streams:
        needs.add("import json")
        lines += ["    stream=True,", "    timeout=60,", ")", "answer.raise_for_status()", "for line in answer.iter_lines():"]
        shown = "event" if not endpoint.outputs else f"event[{_text(endpoint.outputs[0].name)}]"
        lines += ['    if line.startswith(b"data: "):', "        event = json.loads(line[6:])", f"        print({shown}, flush=True)"]
    else:
        lines += ["    timeout=60,", ")", "answer.raise_for_status()", "print(answer.json())"]
    ours = sorted(needs - {"import requests"})
    return "\n".join([*ours, *([""] if ours else []), "import requests", "", *lines])


def _javascript(endpoint: Endpoint) -> str:
    head: list[str] = []
    options = ['  method: "POST",']
    headers = ['Authorization: "Bearer " + process.env.TOKEN'] if endpoint.needs_token else []
    if _as_form(endpoint):
        head = ['import { openAsBlob } from "node:fs"; // in a browser: input.files[0]', "", "const body = new FormData();"]
        for each in endpoint.inputs:
            value = f'await openAsBlob("{PICTURE}"), "{PICTURE}"' if each.picture else _text(_field(each))
            head.append(f"body.append({_text(each.name)}, {value});")
        options.append("  body,")
    else:
        if any(each.picture for each in endpoint.inputs):
            head.append('import { readFile } from "node:fs/promises";')
        if any(not each.is_small and not each.picture for each in endpoint.inputs):
            head.append(
                "const full = ([size, ...rest], value) => Array.from({ length: size }, () => rest.length ? full(rest, value) : value);"
            )
        headers.append('"Content-Type": "application/json"')
        body = _body(endpoint, _in_javascript, "  ")
        options += [f"  body: JSON.stringify({body[0].lstrip()}", *body[1:-1], f"{body[-1]}),"]
    if headers:
        options.insert(1, f"  headers: {{ {', '.join(headers)} }},")
    lines = [*head, *([""] if head else []), f"const answer = await fetch({_text(endpoint.url)}, {{", *options, "});"]
    lines.append("if (!answer.ok) throw new Error(await answer.text());")
    if endpoint.streams:
        lines.append("for await (const part of answer.body.pipeThrough(new TextDecoderStream())) console.log(part);")
    else:
        lines.append("console.log(JSON.stringify(await answer.json()));")
    return "\n".join(lines)


def _in_javascript(tensor: Tensor) -> str:
    if tensor.picture:
        return f'{{ b64: (await readFile("{PICTURE}")).toString("base64") }}'
    return _text(sample(tensor)) if tensor.is_small else f"full({_text(list(tensor.sample_shape))}, {_text(element(tensor))})"


# RPC ---------------------------------------------------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> str:
    """An expression of numpy."""
    if tensor.datatype == "BYTES":
        return f"np.array({_spelled(tensor)}, object)"
    kind = _NUMPY.get(tensor.datatype, "float32")
    if tensor.picture:
        return f"np.zeros({list(tensor.sample_shape)}, np.{kind})  # the picture, made as the model wants it"
    if tensor.is_small:
        return f"np.array({sample(tensor)!r}, np.{kind})"
    return f"np.full({list(tensor.sample_shape)}, {element(tensor)!r}, np.{kind})"


def _grpc(endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.grpc)
    secure = ", ssl=True" if parts.scheme == "grpcs" else ""
    lines = [*(["import os", ""] if endpoint.rpc_needs_token else []), "import numpy as np"]
    lines += ['import tritonclient.grpc as grpc  # pip install "tritonclient[grpc]"', ""]
    lines += [f"client = grpc.InferenceServerClient({_text(parts.netloc)}{secure})", "inputs = []"]
    for each in endpoint.inputs:
        lines += [
            f"array = {_array(each)}",
            f"inputs.append(grpc.InferInput({_text(each.name)}, list(array.shape), {_text(each.datatype)}))",
            "inputs[-1].set_data_from_numpy(array)",
        ]
    headers = ', headers={"authorization": "Bearer " + os.environ["SERVER_TOKEN"]}' if endpoint.rpc_needs_token else ""
    name = _text(endpoint.rpc_name)
    if not endpoint.streams:
        lines.append(f"answer = client.infer({name}, inputs{headers}, client_timeout=30)")
        return "\n".join([*lines, *(f"print(answer.as_numpy({_text(each.name)}))" for each in endpoint.outputs)])
    lines += ["", "", "def take(result, error):", '    """Each part of the answer, as it comes."""', "    if error is not None:"]
    lines += [
        "        raise error",
        "    print(" + ", ".join(f"result.as_numpy({_text(each.name)})" for each in endpoint.outputs) + ")",
        "",
        "",
    ]
    lines += [f"client.start_stream(callback=take{headers})", f"client.async_stream_infer({name}, inputs)", "client.stop_stream()"]
    return "\n".join(lines)


def _thrift(endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.thrift)
    texts = any(each.datatype == "BYTES" for each in endpoint.inputs)
    needs = [name for name, needed in (("os", endpoint.rpc_needs_token), ("ssl", parts.scheme == "thrifts"), ("struct", texts)) if needed]
    lines = [*(f"import {name}" for name in needs), *([""] if needs else [])]
    lines += ["import numpy as np", "import thriftpy2", "from thriftpy2.rpc import client_context"]
    lines += ["from thriftpy2.transport import TFramedTransportFactory", "", f"# curl -O {endpoint.base_url}/ui/idl/inference.thrift"]
    lines += ['idl = thriftpy2.load("inference.thrift", module_name="inference_thrift")', "inputs = []"]
    for each in endpoint.inputs:
        data = "array.tobytes()"
        if each.datatype == "BYTES":
            data = 'b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in array.ravel())'
        elif each.datatype == "BF16":
            data = '(array.view("<u4") >> 16).astype("<u2").tobytes()'
        lines += [f"array = {_array(each)}", f"data = {data}"]
        lines.append(
            f"inputs.append(idl.Tensor(name={_text(each.name)}, datatype={_text(each.datatype)}, shape=list(array.shape), data=data))"
        )
    token = ', token=os.environ["SERVER_TOKEN"]' if endpoint.rpc_needs_token else ""
    secure = ", ssl_context=ssl.create_default_context()" if parts.scheme == "thrifts" else ""
    request = f"idl.InferRequest(model_name={_text(endpoint.rpc_name)}, inputs=inputs, timeout_ms=30_000{token})"
    place = f"{_text(parts.hostname)}, {parts.port}"
    lines += ["framed = TFramedTransportFactory()"]
    lines.append(f"with client_context(idl.Inference, {place}, trans_factory=framed, socket_timeout=30_000{secure}) as client:")
    if endpoint.streams:
        lines += [f"    chunk = client.StreamOpen({request})", "    while True:", "        for answer in chunk.answers:"]
        lines += ["            print([output.data for output in answer.outputs])", "        if chunk.done:", "            break"]
        lines.append(f"        chunk = client.StreamNext(idl.StreamNextRequest(stream=chunk.stream, wait_ms=1000{token}))")
        return "\n".join(lines)
    lines += [f"    answer = client.ModelInfer({request})", "for output in answer.outputs:"]
    numbers = sorted({kind for each in endpoint.outputs if (kind := _NUMPY.get(each.datatype)) and each.datatype != "BF16"})
    if len(numbers) == 1 and all(each.datatype in _NUMPY and each.datatype != "BF16" for each in endpoint.outputs):
        lines.append(f"    print(output.name, np.frombuffer(output.data, np.{numbers[0]}).reshape(output.shape))")
    else:
        lines.append("    print(output.name, output.datatype, output.shape, output.data[:64])")
    return "\n".join(lines)
