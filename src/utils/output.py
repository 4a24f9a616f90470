"""Standard output and error that never raise: a closed pipe or terminal must not end a training."""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended; the terminal was closed


class _Stream(io.FileIO):
    """A standard stream; what can no longer be written is dropped, and the first loss is reported."""

    def write(self, data: Any) -> int:  # noqa: ANN401 -- whatever has a buffer of bytes
        """Write bytes, or drop them.

        Returns:
            The number of bytes that were taken, which is never 0.
        """
        try:
            while (count := super().write(data)) is None:  # another program made the stream non-blocking
                select.select([], [self], [])
        except OSError as error:
            _silence(self.fileno())
            if error.errno not in _GONE and self.fileno() == 1:
                print(f"warning: the output cannot be written ({error.strerror})", file=sys.stderr)
            return len(data)
        return count


def _silence(descriptor: int) -> None:
    """Lead a descriptor to nowhere, for libraries that write to it by its number as well."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def never_raise() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` streams that never raise, unless they were replaced before.

    A character that the stream's encoding lacks is written as an escape sequence. A stream that is closed
    leads to nowhere: the next file to be opened would take its number, and get what libraries write.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr)


def _stream(descriptor: int, old: TextIO | None) -> TextIO:
    if old is not None:
        old.flush()
    buffered = io.BufferedWriter(_Stream(descriptor, "wb", closefd=False))
    encoding = None if old is None else old.encoding
    # Line by line in a pipe and a file as well: a job's log shows what the job does now.
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)
