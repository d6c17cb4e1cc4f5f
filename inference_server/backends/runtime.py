"""onnxruntime, as everything of ours imports it: without its telemetry.

The official wheels (seen in 1.31) send events to their maker and keep them in the home folder in between, unless told otherwise before they
are imported. What a host's models do is nobody else's business; and in a forked process, which has not got the thread that sends them, the
events pile up: 4 kB for each failed run.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # whoever wants it sets 0

import onnxruntime

__all__ = ["onnxruntime"]
