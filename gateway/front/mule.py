"""One event loop as a mule of uWSGI's, beside its workers: the whole life of the process.

A file that uWSGI runs as `__main__`: a mule that is named as a function crashes with lazy-apps.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys

import uwsgi

from gateway import log
from gateway.application import default_services, message_limit
from gateway.front.server import Front
from gateway.metrics import Metrics
from gateway.settings import Settings

HANGS_S = 15.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Until a signal; never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # uWSGI sees to its workers only
    settings = Settings.from_env(os.environ)
    log.configure(settings.log_level, int(sys.argv[1]))
    number = uwsgi.mule_id()
    services = default_services(settings, Metrics(settings.metrics_dir, settings.processes + number))
    front = Front(services, settings.hot_sockets[number - 1], settings.lanes, message_limit(settings))
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: front.leave(settings.drain_timeout_s))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # gateway/preloaded.py
    logging.getLogger("gateway.front").info("gateway_front_ready", extra={"front": number, "pid": os.getpid()})
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # nothing that a request makes refers to itself
    # a loop that hangs, in native code even, ends: uWSGI starts another
    front.serve(lambda: faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.stderr))
    services.close()
    os._exit(0)  # what uWSGI would do now is wait for signals of its own


main()
