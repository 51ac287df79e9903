"""Memory of the process that the system gets back."""

import ctypes
import sys


def trim_heap() -> None:
    """Give the system what the C library holds of freed memory, where that is glibc.

    Once a large array has been freed, glibc serves arrays up to its size from its heap, which does
    not shrink where a small one lies behind: each block of a model would add to the process.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return
    trim(0)
