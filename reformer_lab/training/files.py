"""Files that survive: written whole or not at all, and opened only where they are what they seem."""

import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path

from reformer_ref._arguments import short_repr


def as_path(name, value):
    """``value`` as a Path; TypeError if it is not a path, ValueError if no file can have that name."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a path, got {short_repr(value)}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > 4096 or any(len(part) > 255 for part in encoded.split(b"/")):
        raise ValueError(f"{name} must be a name that a file can have, got {short_repr(str(value))}")
    return Path(value)


def write_atomically(path, content):
    """Write bytes to ``path`` so that a crash leaves the old file or the new one, never half of one.

    OSError if the path is that of something else: a device that is replaced by a file is gone for all users.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "there is something that is not a file", str(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide the result from everyone else
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_left_overs(folder):
    """Remove what a killed `write_atomically` has left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder):
    """Make names in a folder survive a power cut: a rename is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, value):
    """Write a dict as JSON, one line per key, atomically; ValueError for NaN and infinity, which are not JSON."""
    lines = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


@contextlib.contextmanager
def open_regular(path, most=None, append=False):
    """A regular file of at most ``most`` bytes, open for reading bytes (and adding to them); OSError for all else.

    Symbolic links are not followed, and pipes and devices, which could block or never end, are refused: the content
    of a folder from other people must not lead out of it.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if append else os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # some systems lack some of them
        flags |= getattr(os, name, 0)
    # Without a buffer, what is added goes to the system at once: a killed process loses no line of it.
    with os.fdopen(os.open(path, flags, 0o644), "a+b" if append else "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"it is not a regular file: {path}")
        if most is not None and status.st_size > most:
            raise OSError(f"it has {status.st_size:,} bytes, at most {most:,} are accepted: {path}")
        yield file
