"""Run as a script, without this package: becomes another program that gets SIGTERM when its parent ends, however that ends.

python -I -S launch.py PARENT PROGRAM ARGUMENT...
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(sys.argv[1]):  # else it ended before the line above
        os.execv(sys.argv[2], sys.argv[2:])
