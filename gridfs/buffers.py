"""Memory for bytes in flight: allocated without being cleared, and kept by the allocator when freed.

First-touch page faults dominate a filesystem in Python: with glibc's defaults every 1 MiB buffer is mapped, faulted in page
by page, and unmapped again. `keep_freed_memory` stops that, and `allocate` leaves out the clearing that `bytearray(n)` does.
"""

from __future__ import annotations

import ctypes
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What can be sent."""

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_new_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new_bytearray.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_new_bytearray.restype = ctypes.py_object


def allocate(size_bytes: int) -> bytearray:
    """A bytearray of `size_bytes` whose content is undefined: the caller must fill all of it before anyone reads it.

    PyByteArray_FromStringAndSize copies nothing from a NULL pointer (CPython's C API reference, Byte Array Objects).
    """
    buffer: bytearray = _new_bytearray(None, size_bytes)
    return buffer


def keep_freed_memory() -> None:
    """Tell glibc to serve large buffers from its heap and to keep them there when freed; call once, at process start.

    The figures are those that docs/PERFORMANCE.md measured: mmap from 1 GiB on, trim above 2 GiB, grow by 64 MiB.
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
