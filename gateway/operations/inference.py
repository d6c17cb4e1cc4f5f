"""Who may call which model, and the calls themselves. Knows neither Flask nor a wire."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.model_declaration import Declaration
from gateway.models_rpc import Models
from gateway.operations.access import require_scope
from gateway.operations.deployed import Deployed
from gateway.operations.deployment_errors import V2
from gateway.operations.deployments import Target
from gateway.operations.v2_messages import InferBody
from gateway.types import Principal, Scope
from idl.codes import Code, ServingError
from idl.messages import InferRequest, InferResponse, ModelIndex, ModelStatistics, Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks and until when. `deadline` is in seconds of `time.monotonic()`; `traceparent` as in W3C Trace Context, or "".

    `connection`: the descriptor of the caller's connection, which tells when the caller has gone; -1 where there is none. `deployed`: who
    may call which deployment; None: whoever calls has seen to that.
    """

    principal: Principal | None
    request_id: str
    deadline: float
    traceparent: str = ""
    connection: int = -1
    deployed: Deployed | None = None


def require_callable(
    models: Models, call: Call, model: str, version: str = "", scope: Scope = Scope.CALL, *, running: bool = True
) -> Target | None:
    """The deployment called `model`, which runs, or with `running` False whatever it does; None for a model of the operators'.

    Raises unauthenticated for a private model and nobody signed in, forbidden for an API key without the scope, and what the host says
    of a model that it does not serve. Of a deployment besides deployment_paused and not_ready; one that sleeps is woken, and waited for.
    """
    if "." in model and call.deployed is not None:
        require_scope(call.principal, scope)
        target = call.deployed.admit(call.principal, model, version)
        if target is not None:
            with call.deployed.errors.noting(target.id, call.request_id, V2):
                return call.deployed.ready(target, call.deadline) if running else target
    if call.principal is not None:
        require_scope(call.principal, scope)
        return None
    try:
        declaration = models.declaration(model, version)
    except ServingError as error:
        if error.code in (Code.NOT_READY, Code.INVALID_MODEL):  # perhaps a private one: why is not for everybody to know
            raise ServingError(error.code, f"model {model!r} is not ready", retry_after_ms=error.retry_after_ms) from error
        raise
    require_public(declaration, model)
    return None


def require_public(declaration: Declaration, model: str) -> None:
    """The same for nobody signed in and a declaration that is known."""
    if not declaration.public:
        raise ServingError(Code.UNAUTHENTICATED, f"model {model!r} is private: sign in to use it")


def require_operator(call: Call, what: str = "loading and unloading models") -> None:
    """Raises unauthenticated or forbidden unless an operator or an administrator asks."""
    if call.principal is None:
        raise ServingError(Code.UNAUTHENTICATED, f"{what}: this needs an operator's token")
    if not call.principal.may_operate:
        raise ServingError(Code.FORBIDDEN, f"{what}: this needs the role operator or administrator")


def request(call: Call, model: str, version: str, body: InferBody) -> InferRequest:
    """What the model host gets of the open protocol's inference, under the caller's own id where it gave one."""
    deadline = earliest(call.deadline, body)
    return InferRequest(
        model, body.inputs, version, body.id or call.request_id, tuple(body.outputs), body.parameters, deadline, call.traceparent
    )


def earliest(deadline: float, body: InferBody) -> float:
    """`deadline`, or the caller's own where that comes before."""
    return min(deadline, time.monotonic() + body.timeout_us / 1e6) if body.timeout_us else deadline


def predict(models: Models, call: Call, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> InferResponse:
    """One inference with tensors that the gateway made; `outputs` empty for all."""
    asked = InferRequest(
        model, tuple(inputs), version, call.request_id, tuple(outputs), deadline=call.deadline, traceparent=call.traceparent
    )
    return models.infer(asked, call.connection)


def visible_index(models: Models, call: Call, *, ready: bool) -> list[ModelIndex]:
    """The repository as the caller may see it: without a token, the public models only."""
    require_scope(call.principal, Scope.READ)
    entries = models.index(ready=ready)
    seen = {name for name in {entry.name for entry in entries} if _is_visible(models, call, name)}
    return [entry for entry in entries if entry.name in seen]


def visible_statistics(models: Models, call: Call) -> list[ModelStatistics]:
    """The statistics of every model that the caller may see."""
    require_scope(call.principal, Scope.READ)
    return [entry for entry in models.statistics() if _is_visible(models, call, entry.name)]


def _is_visible(models: Models, call: Call, name: str) -> bool:
    """Deployments that the caller may call; of the operators' models all, and without a token the public ones."""
    if "." in name and call.deployed is not None:
        try:
            if call.deployed.admit(call.principal, name) is not None:
                return True
        except ServingError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise
            return False
    return call.principal is not None or _is_public(models, name)


def _is_public(models: Models, name: str) -> bool:
    """False also for a model whose declaration cannot be read now: who may know of it is not guessed."""
    try:
        return models.declaration(name).public
    except ServingError as error:
        if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            raise
        return False
