"""The last that uWSGI's master does before it forks; what workers and event loops use is imported by then (gateway/launch.py).

Importing must open nothing and start no thread.
"""

import gc
import signal

for _number in (signal.SIGTERM, signal.SIGINT):
    # uWSGI ignores these until its master is up, a moment later: there is no request yet, and whoever asks for the end gets it at once
    signal.signal(_number, signal.SIG_DFL)
gc.collect()
gc.freeze()  # a collection in a child would write to every object, and so copy what is shared
# Until the master and each of its processes have their own handlers. A child has its parent's first: it would take the signal for its
# own, do the master's work with it, and go on.
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
