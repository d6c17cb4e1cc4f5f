"""What a model host has to have of a deployment, with the files that belong to it."""

import contextlib
from collections.abc import Iterator, Sequence

from gateway.operations import deployments, model_files
from gateway.operations.host_side import SETTINGS_FILE, Plan, ScriptPlan
from gateway.operations.model_files import Placed
from gateway.storage import Storage
from gateway.storage.deployments import DeploymentRecord
from idl.codes import Code, ServingError


@contextlib.contextmanager
def planned(storage: Storage, record: DeploymentRecord) -> Iterator[Plan]:
    """While the block lasts its files can be read. A version that has served is not sent again where it lies, unless something failed since.

    Raises gone and insufficient_capacity as `model_files.placed`.
    """
    with contextlib.ExitStack() as stack:
        stable = stack.enter_context(_placed(storage, record.version_id))
        files = list(stable)
        if record.canary_version_id is not None:
            # what lies beside the versions is of the one that most requests go to
            files += [file for file in stack.enter_context(_placed(storage, record.canary_version_id)) if file.version]
        script = None
        if record.script_version_id is not None and record.script_sha256 is not None:
            source = storage.blobs.path(record.script_sha256)
            script = ScriptPlan(deployments.script_name(record), record.script_version_id, source, record.serving_script_id or 0)
        yield Plan(
            record.rpc_name,
            record.version,
            record.canary_version or 0,
            record.canary_percent,
            [file for file in files if file.name != SETTINGS_FILE],
            next((file.path.read_bytes() for file in stable if file.name == SETTINGS_FILE), b""),
            record.instances,
            record.cpus,
            record.memory,
            script,
            [number for number in (record.previous_version, record.serving_version) if number],
            record.serving_version or 0 if not record.failures else 0,
        )


def _placed(storage: Storage, version_id: int) -> contextlib.AbstractContextManager[Sequence[Placed]]:
    version = storage.models.version_by_id(version_id)
    if version is None:
        raise ServingError(Code.GONE, "a version of its model is not kept any more")
    return model_files.placed(storage, version)
