"""FUSE_INIT, the kernel's first request and the answer to it, passed on with what libfuse does not know of.

With FUSE_HANDLE_KILLPRIV_V2 the filesystem sees to it that writes take setuid and setgid away, and the kernel no longer asks
for `security.capability` before each write: that was every second request of a program that writes a little at a time. libfuse
3.14 does not know the flag, so the answer is put right on its way. Layouts and flags: linux/fuse.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

_IN_HEADER_BYTES, _OUT_HEADER_BYTES = 40, 16
_ERROR_AT = 4
"""In struct fuse_out_header."""
_FLAGS_AT = 12
"""In struct fuse_init_in and in struct fuse_init_out."""
_HANDLE_KILLPRIV_V2 = 1 << 28
_REQUEST_MAX_BYTES, _ANSWER_MAX_BYTES = 1 << 20, 1 << 16
_U32 = struct.Struct("=I")


class Greeting:
    """A socket in the place of the device, until libfuse has read the request from there and written its answer to it.

    The kernel sends nothing else before it has the answer. For the one task that waits for the device.
    """

    def __init__(self, fd: int, answered: Callable[[], None]) -> None:
        """`fd` is the device, just mounted. `answered` is called when the kernel has the answer."""
        self._fd, self._answered = fd, answered
        self._device = os.dup(fd)
        self._request = os.read(self._device, _REQUEST_MAX_BYTES)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._ours.send(self._request)
        os.dup2(theirs.fileno(), fd, inheritable=False)
        theirs.close()
        self._has_asked = False

    def is_to_be_read(self) -> bool:
        """Whether libfuse is to read the request now: so it is the first time. The next time its answer is there, and goes on.

        Afterwards `fd` is the device again. Raises OSError if the kernel does not take the answer.
        """
        if not self._has_asked:
            self._has_asked = True
            return True
        answer = completed(self._request, self._ours.recv(_ANSWER_MAX_BYTES))
        os.dup2(self._device, self._fd, inheritable=False)
        self._ours.close()
        os.close(self._device)
        os.write(self._fd, answer)
        self._answered()
        return False


def completed(request: bytes, answer: bytes) -> bytes:
    """The answer, if it is no error, with those flags that the kernel offers, libfuse does not know and gridfs lives up to."""
    offered = _U32.unpack_from(request, _IN_HEADER_BYTES + _FLAGS_AT)[0]
    if any(answer[_ERROR_AT : _ERROR_AT + _U32.size]):
        return answer
    told = bytearray(answer)
    flags = _U32.unpack_from(told, _OUT_HEADER_BYTES + _FLAGS_AT)[0]
    _U32.pack_into(told, _OUT_HEADER_BYTES + _FLAGS_AT, flags | offered & _HANDLE_KILLPRIV_V2)
    return bytes(told)
