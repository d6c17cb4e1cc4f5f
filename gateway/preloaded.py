"""What uWSGI's master imports before it forks: everything that workers and event loops use, so that its memory is shared by all of them.

Importing must open nothing and start no thread.
"""

import gc
from importlib import import_module

for _name in ("gateway.application", "gateway.front.server", "inference_client.thrift_channel"):
    import_module(_name)
gc.collect()
gc.freeze()  # a collection in a child would write to every object, and so copy what is shared
