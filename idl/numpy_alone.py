"""numpy for programs that hand arrays on and compute nothing with them.

OpenBLAS starts a thread for each core when numpy is imported, and each of them turns for a while before it sleeps: 0.1 s of processor time
on two cores, measured. It reads how many to start from the environment.
"""

import importlib
import os
import sys

_THREADS = "OPENBLAS_NUM_THREADS"


def load() -> None:
    """Imports numpy without those threads, where nobody has imported it and the environment does not say how many. The environment is as
    before afterwards: a program that this one starts may compute.
    """
    if "numpy" in sys.modules or _THREADS in os.environ:
        return
    os.environ[_THREADS] = "1"
    try:
        importlib.import_module("numpy")
    finally:
        del os.environ[_THREADS]
