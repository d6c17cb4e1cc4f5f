"""What becomes of a task whose run failed: tried again where the platform failed, ended where the input or the model did.

A run that was refused before it began counts no attempt and is repeated until the task is too old for the queue: nothing is wrong with the task.
A run that may have begun and whose worker, connection or model process died counts one.
"""

from gateway.storage.task_queue import Finished, GivenBack
from gateway.storage.task_records import CANCELLED, FAILED, TaskRecord
from idl import last_words
from idl.codes import Code, ServingError

_REFUSED = frozenset({Code.OVERLOADED, Code.NOT_READY, Code.DEPLOYMENT_PAUSED, Code.INSUFFICIENT_CAPACITY})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_UNREACHABLE = "the model host cannot be reached"


def judge(task: TaskRecord, error: ServingError, most_attempts: int) -> Finished | GivenBack:
    """`task` as it was claimed: its attempts count this run."""
    if error.code in _REFUSED or is_unreachable(error):
        return wait(task, error)
    if error.code is Code.UNAVAILABLE or (error.code is Code.MODEL_FAILED and last_words.is_death(error.message)):
        if task.attempts < most_attempts:
            return GivenBack(task, min(_LONGEST_WAIT_S, 2.0 ** (task.attempts - 1)), task.attempts, task.waits, error.message)
        return failed(task, error.code, f"{error.message} (the last of {task.attempts} attempts)")
    return failed(task, error.code, error.message)


def is_unreachable(error: ServingError) -> bool:
    """Whether no model host got the request."""
    return error.code is Code.UNAVAILABLE and error.message.startswith(_UNREACHABLE)


def wait(task: TaskRecord, error: ServingError) -> GivenBack:
    """Later again, at growing distances, and behind its user's other tasks: the run did not begin, and others must not wait for that."""
    delay_s = max(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(task.waits, 10)), error.retry_after_ms / 1000)
    return GivenBack(task, delay_s, task.attempts - 1, task.waits + 1, error.message, behind=True)


def put_back(task: TaskRecord, *, behind: bool = False) -> GivenBack:
    """At once again, by another worker: this one ends. `behind`: after its user's other tasks, for somebody else's sake."""
    return GivenBack(task, 0.0, task.attempts - 1, task.waits, behind=behind)


def failed(task: TaskRecord, code: Code, message: str) -> Finished:
    return Finished(task, FAILED, error_code=code.value, error_message=message[:2000], progress=task.progress)


def cancelled(task: TaskRecord) -> Finished:
    return Finished(task, CANCELLED, progress=task.progress)
