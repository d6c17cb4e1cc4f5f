"""What uWSGI's master imports before it forks: everything that workers and event loops use, so that its memory is shared by all of them.

Importing must open nothing and start no thread.
"""

import gc
import signal
from importlib import import_module

for _number in (signal.SIGTERM, signal.SIGINT):
    # uWSGI ignores these until its master is up, a second later: there is no request yet, and whoever asks for the end gets it at once
    signal.signal(_number, signal.SIG_DFL)
for _name in ("gateway.application", "gateway.front.server", "gateway.worker.process", "inference_client.thrift_channel"):
    import_module(_name)
gc.collect()
gc.freeze()  # a collection in a child would write to every object, and so copy what is shared
# Until the master and each of its processes have their own handlers. A child has its parent's first: it would take the signal for its
# own, do the master's work with it, and go on.
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
