"""Shared memory as a row of 64-bit integers.

Python's own mmap keeps a descriptor open for each mapping; a host with thousands of models would pay one for every attached caller.
"""

import ctypes
import weakref

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def map_cells(descriptor: int, count: int, *, writable: bool) -> memoryview:
    """`count` signed 64-bit integers of a file at least that long; given back when the last reference goes. Raises OSError."""
    size = 8 * count
    address = _libc.mmap(None, size, _PROT_READ | (_PROT_WRITE if writable else 0), _MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), "cannot be mapped")
    cells = (ctypes.c_int64 * count).from_address(address)
    weakref.finalize(cells, _libc.munmap, address, size).atexit = False
    return memoryview(cells).cast("B").cast("q").toreadonly() if not writable else memoryview(cells).cast("B").cast("q")
