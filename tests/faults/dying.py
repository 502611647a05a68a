"""The command in a process that kills itself (SIGKILL) at a chosen moment of writing: dying.py WHAT
N train ….

WHAT is a function of the module `os` (before its N-th call from `reformer_lab.training.files` on), or "half-written":
in the middle of the N-th file.
"""

import os
import signal
import sys

from reformer_lab import cli
from reformer_lab.training import files


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """The module os, except that one of its functions kills at a certain call."""

    def __init__(self, fault, number):
        self.fault, self.left = fault, number

    def __getattr__(self, name):
        value = getattr(os, name)
        return self.counted(value) if name == self.fault else value

    def counted(self, function):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                kill()
            return function(*args, **kwargs)

        return call

    def fdopen(self, handle, mode, buffering=-1):
        file = os.fdopen(handle, mode, buffering)
        if self.fault == "half-written" and mode == "wb":
            self.left -= 1
            if self.left == 0:
                return HalfWritten(file)
        return file


class HalfWritten:
    """A file that takes half of what it is given, and then the process with it."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def fileno(self):
        return self.file.fileno()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        kill()


if __name__ == "__main__":
    files.os = Dying(sys.argv[1], int(sys.argv[2]))
    sys.exit(cli.main(sys.argv[3:]))
