"""What uWSGI's master imports before it forks: everything that workers and event loops use, so that its memory is shared by all of them.

Importing must open nothing and start no thread.
"""

import gc

import inference_client.thrift_channel  # noqa: F401

gc.collect()
gc.freeze()  # a collection in a child would write to every object, and so copy what is shared
