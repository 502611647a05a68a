"""What a measurement must say about itself: machine, versions, command and date; and how it is written down."""

import json
import os
import platform
import shlex
import stat
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from reformer_ref import __version__
from reformer_ref._arguments import require_int, short_repr
from reformer_ref.memory.measure import peak_rss

__all__ = ["about", "machine", "peak_rss", "require_place", "usable_cores", "versions", "without_folders", "write"]

LIBRARIES = ("torch", "numpy", "transformers", "reformer-pytorch")


def about(command, threads):
    """The head of a record, JSON values: command, date (UTC), machine and versions; ``threads``: CPU threads used."""
    return {
        "command": without_folders(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(threads),
        "versions": versions(),
    }


def machine(threads):
    """Processor, cores, memory in bytes and system of this machine; no name of it, nor of anything on it."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": require_int("threads", threads),
        "memory_bytes": pages,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions():
    """Versions of Python, of this package and of the libraries that are installed."""
    installed = {"python": platform.python_version(), "reformer_ref": __version__}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def usable_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def without_folders(command):
    """The command with absolute paths cut to the file's name: a record goes to other machines."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command must be one that a shell understands, {error}: {short_repr(command)}") from None
    heads = [word.rpartition("=") if word.startswith("-") else ("", "", word) for word in words]
    return shlex.join(a + b + (Path(path).name if os.path.isabs(path) else path) for a, b, path in heads)


def require_place(name, path):
    """``path`` as a Path to which a file can be written, its folder made; ValueError if that cannot be.

    What stands there already must be a file: a device that is replaced by one is gone.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"):
            kind = stat.S_IFMT(path.stat().st_mode) if os.path.lexists(path) else stat.S_IFREG
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} {short_repr(str(path))} cannot be written: {reason}") from None
    if kind != stat.S_IFREG:
        raise ValueError(f"{name} {short_repr(str(path))} cannot be written: there is something that is no file")
    return path


def write(path, record):
    """Write a record as JSON, one line per key and per entry of a list of results, atomically; folders are created."""
    from reformer_lab.training.files import write_atomically

    def text(value):
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            return "[\n " + ",\n ".join(text(entry) for entry in value) + "\n]"
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    lines = (f"{json.dumps(key)}: {text(value)}" for key, value in record.items())
    write_atomically(require_place("path", path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())
