"""A script that is not kept yet, tried around the model of a deployment: its calls go on with the script that they have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.models_rpc import Models
from gateway.operations import deployment_calls, deployments
from gateway.operations.access import Can
from gateway.operations.deployment_changes import Deployments
from gateway.operations.inference import Call
from gateway.operations.model_tests import ModelTests
from gateway.operations.prediction_bodies import PredictionBody
from gateway.operations.scripts import Scripts
from gateway.settings import Settings
from idl.codes import Code, ServingError


class ScriptTrials:
    """Thread-safe."""

    def __init__(self, models: Models, settings: Settings, wanted: Deployments, scripts: Scripts, tests: ModelTests) -> None:
        self._models = models
        self._settings = settings
        self._deployments = wanted
        self._scripts = scripts
        self._tests = tests

    def run(self, call: Call, name: str, source: bytes, body: PredictionBody) -> Mapping[str, Any]:
        """What the deployment would answer with that script; it lies on the model hosts as `owner.name.try` meanwhile.

        Raises what `Scripts.check`, a call of the deployment, and loading raise; deployment_paused where it is not to run.
        """
        record = self._deployments.find(call.principal, name, Can.CHANGE)
        functions = self._scripts.check(source)
        target = deployments.target_of(record)
        if call.deployed is None:
            raise ServingError(Code.INTERNAL, "a script is tried for somebody who may call the deployment")
        target = call.deployed.ready(target, call.deadline)
        on_host = f"{record.rpc_name}.try"
        tried = replace(target, script_name=on_host, script_version=1, functions=tuple(functions))
        # nobody else is to be asked again where it is refused: what is tried is this script, once
        asked = replace(call, deployed=None)
        answer = self._tests.with_script(
            on_host, source, call.deadline, lambda: deployment_calls.predict(self._models, self._settings, asked, tried, body)
        )
        return {**answer, "functions": list(functions)}
