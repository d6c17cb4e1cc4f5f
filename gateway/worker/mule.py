"""A task worker as a mule of uWSGI's: it ends with its gateway, however that ends, and uWSGI starts another within about a second.

A file that uWSGI runs as `__main__`: a mule that is named as a function crashes with lazy-apps. It shares the memory of what the master
imported, and so is there in milliseconds.
"""

import ctypes
import logging
import os
import signal
import sys
import time

import uwsgi

from gateway import log
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.worker import process
from gateway.worker.__main__ import work

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 1.0
_MASTER_FIRST_S = 0.5
"""After Ctrl-C, which reaches every process at once: a mule that ends before the master knows of the end is started again."""
_log = logging.getLogger("gateway.worker")


def _end(*_: object) -> None:
    time.sleep(_MASTER_FIRST_S)
    os._exit(0)  # what uWSGI would do now is wait for signals of its own


def main() -> None:
    """Until a signal; never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # uWSGI sees to its workers only
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, _end)  # until there is something to finish
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # gateway/preloaded.py
    settings = Settings.from_env(os.environ)
    log.configure(settings.log_level, int(sys.argv[1]))
    mule = uwsgi.mule_id()
    number = mule - len(settings.hot_sockets)
    metrics = Metrics(settings.metrics_dir, settings.processes + mule)
    told = False
    while True:
        try:
            with process.lock(settings.run_dir, number):
                work(settings, number, metrics)
            _end()
        except process.AlreadyRunning as error:
            if not told:  # `outboard worker` has it: this one stands by
                _log.warning("worker_stands_by", extra={"reason": str(error)})
            told = True
            time.sleep(_LOOK_EVERY_S)
        except Exception:  # noqa: BLE001 - the log has it; uWSGI starts the next one
            _log.exception("worker_failed")
            time.sleep(_LOOK_EVERY_S)
            os._exit(1)


main()
