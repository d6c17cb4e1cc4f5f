"""What uWSGI loads, once in each worker: nothing here is shared between processes."""

# ruff: noqa: E402 - the first line counts: whoever is asked to end before it accepts (gateway/launch.py) must not forget it
import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())  # gateway/preloaded.py

import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace

import uwsgi

from gateway import create_app, default_services, log
from gateway.metrics import Metrics
from gateway.request_body import DirectBodies, EarlyAnswers
from gateway.settings import Settings
from idl.codes import ServingError

_started = time.perf_counter()
_settings = Settings.from_env(os.environ)
log.configure(_settings.log_level, int(sys.argv[1]))
_services = default_services(_settings, Metrics(_settings.metrics_dir, uwsgi.worker_id()))
_services = replace(_services, detach=lambda: os.dup(uwsgi.connection_fd()))
uwsgi.atexit = _services.close
application = create_app(_settings, services=_services)
if _settings.socket:
    application.wsgi_app = EarlyAnswers(application.wsgi_app, _settings.max_request_bytes)  # type: ignore[method-assign]
else:
    application.wsgi_app = DirectBodies(application.wsgi_app, uwsgi.chunked_read, _settings.max_body_bytes)  # type: ignore[method-assign]
with suppress(ServingError):  # not the first caller waits for modules to be imported and a connection to be made
    _services.models.server_live()
_ms = round((time.perf_counter() - _started) * 1000, 1)
logging.getLogger(__name__).info("gateway_worker_ready", extra={"worker": uwsgi.worker_id(), "pid": os.getpid(), "ms": _ms})
