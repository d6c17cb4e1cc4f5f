"""What `outboard doctor` looks at of Outboard itself: ports and who answers there, model folders, GPUs."""

import errno
import http.client
import socket
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from idl.codes import ServingError
from outboard.doctor import OK, PROBLEM, WARNING, Check, Finding, Place

if TYPE_CHECKING:
    from inference_client import Client

TIMEOUT_S = 3.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def ports(place: Place) -> Iterator[Finding]:
    """Each is free, or one of ours answers."""
    for name, port in place.ports.items():
        if not port:
            continue
        why = _taken(place.host, port)
        if not why:
            yield Finding(OK, f"{name} port", f"{port} is free")
        elif why != "taken":
            yield Finding(
                PROBLEM,
                f"{name} port",
                f"{port} of {place.host} cannot be listened on: {why}",
                f"choose another one with --{name}-port or --host",
            )
        elif trouble := _ours(place, name, port):
            yield Finding(
                PROBLEM,
                f"{name} port",
                f"{port} is taken, and what answers there is no Outboard ({trouble})",
                f"end it, or choose another one with --{name}-port",
            )
        else:
            yield Finding(OK, f"{name} port", f"Outboard answers on {port}")


def _taken(host: str, port: int) -> str:
    """ "" for a free port, "taken", or why it cannot be had."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ""
    except OSError as error:
        return "taken" if error.errno == errno.EADDRINUSE else str(error.strerror or error)


def _ours(place: Place, name: str, port: int) -> str:
    """ "" where one of ours answers, else why not."""
    host = _EVERYWHERE.get(place.host, place.host)
    try:
        if name in ("grpc", "thrift"):
            return "" if _live(place, name, host, port) else "it says that it is not alive"
        status, text = _get(host, port, "/metrics" if name == "metrics" else "/livez")
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    except ServingError as error:
        return f"{error.code.value}: {error.message}"
    except ValueError as error:
        return str(error)
    if name == "metrics":
        return "" if "outboard_accepting" in text else "it has no metrics of ours"
    return "" if status == 200 else f"/livez says {status}"


def _live(place: Place, scheme: str, host: str, port: int) -> bool:
    with _connected(place, scheme, host, port) as client:
        return client.server_live()


def _connected(place: Place, scheme: str, host: str, port: int) -> "Client":
    """Over TLS where the server's settings, or the options, say so. Raises ValueError for files that cannot be used."""
    from inference_client import Client
    from outboard import host_access

    tls = host_access.tls(Namespace(**{name: place.files.get(name) for name in host_access.FILES}), place.environ)
    secure = bool(tls.ca or place.environ.get("OUTBOARD_SERVER_TLS_CERTIFICATE"))
    address = f"{scheme}{'s' if secure else ''}://{_bracketed(host)}:{port}"
    return Client(address, token=place.token, timeout_s=TIMEOUT_S, tls=tls if secure else None)


def _get(host: str, port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(16 << 20).decode(errors="replace")
    finally:
        connection.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def model_folders(place: Place) -> Iterator[Finding]:
    from inference_server.near_models import near_models

    if not place.models:
        yield Finding(OK, "models", "no repository of yours is named (--models)")
    for root in place.models:
        if not root.is_dir():
            yield Finding(PROBLEM, "models", f"{root} is not a folder", "make it, or name another one with --models")
            continue
        found = near_models(root)
        for near in found:
            yield Finding(WARNING, "models", f"{near.where} is not a model", near.why)
        if not found:
            yield Finding(OK, "models", f"{root} has nothing that is nearly a model")


def server(place: Place) -> Iterator[Finding]:
    """Where one runs: what it serves."""
    port = place.ports.get("grpc", 0)
    host = _EVERYWHERE.get(place.host, place.host)
    if not port or not _taken(place.host, port):
        yield Finding(OK, "server", "none runs here now")
        return
    try:
        with _connected(place, "grpc", host, port) as client:
            index = client.repository_index()
            ready = client.server_ready()
    except ValueError as error:
        yield Finding(PROBLEM, "server", f"cannot be asked: {error}", "see --ca, --certificate and --key")
        return
    except ServingError as error:
        advice = "give its token with --token" if error.code.value in ("unauthenticated", "forbidden") else "look at its log"
        yield Finding(PROBLEM, "server", f"does not answer: {error.code.value}: {error.message}", advice)
        return
    for entry in index:
        if entry.state == "UNAVAILABLE" and entry.reason not in ("", "not loaded", "unloaded"):
            yield Finding(
                WARNING,
                "server",
                f"{entry.name} version {entry.version or '?'} is not served: {entry.reason}",
                "mend it, then: outboard models reload",
            )
    names = {entry.name for entry in index if entry.state == "READY"}
    if ready:
        yield Finding(OK, "server", f"is ready, with {len(names)} models")
    else:
        yield Finding(WARNING, "server", f"is not ready, with {len(names)} models that are", "outboard models list says which is not")


def gpus(place: Place) -> Iterator[Finding]:
    import onnxruntime

    from inference_server.gpus import Gpus

    found = Gpus().read()
    wanted = [
        text.strip() for text in place.environ.get("OUTBOARD_SERVER_EXECUTION_PROVIDERS", "CPUExecutionProvider").split(",") if text.strip()
    ]
    has = onnxruntime.get_available_providers()
    names = ", ".join(gpu.name for gpu in found)
    for provider in wanted:
        if provider not in has:
            advice = (
                "install onnxruntime-gpu in the place of onnxruntime"
                if provider.startswith(("CUDA", "Tensorrt"))
                else "install the onnxruntime that has it"
            )
            yield Finding(PROBLEM, "GPU", f"onnxruntime has no {provider}; it has {', '.join(has)}", advice)
    uses = any(provider.startswith(("CUDA", "Tensorrt")) for provider in wanted)
    if uses and not found:
        yield Finding(
            PROBLEM,
            "GPU",
            "models are to run on one, and no driver answers",
            "install NVIDIA's driver, or leave OUTBOARD_SERVER_EXECUTION_PROVIDERS as it is",
        )
    elif found and not uses:
        yield Finding(
            WARNING, "GPU", f"{names}: not used", "OUTBOARD_SERVER_EXECUTION_PROVIDERS=CUDAExecutionProvider,CPUExecutionProvider uses it"
        )
    else:
        yield Finding(OK, "GPU", f"{names}" if found else "none, and none is asked for")


CHECKS: tuple[Check, ...] = (ports, model_folders, server, gpus)
