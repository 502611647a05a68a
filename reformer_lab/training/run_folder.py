"""The folder of a training run: one process at a time, metrics line by line, checkpoints.

metrics.jsonl   a line per step and per evaluation: what the same run gives again, to the last bit
timings.jsonl   a line per step: seconds, tokens per second, peak memory: what no run gives twice
checkpoints/    see `checkpoint`
failed/         the batch at which a loss was not finite, if there was one
"""

import contextlib
import errno
import hashlib
import json
import os
import socket
from pathlib import Path

import safetensors.torch

from reformer_lab.training import checkpoint
from reformer_lab.training.checkpoint import CheckpointNotWritten
from reformer_lab.training.files import is_left_over, sync_folder, write_atomically, write_json

METRICS, TIMINGS, LOCK = "metrics.jsonl", "timings.jsonl", ".lock"


class RunFolder:
    """A context manager that holds a folder for itself: no other process may train into it meanwhile.

    The lock is the system's (flock): it goes with the process, however that ends. ValueError if another process holds
    it, if a run is already there and ``resume`` is False, or if the folder cannot be written to.
    """

    def __init__(self, path, resume=False, tensorboard=False):
        self.path, self.resume, self.tensorboard = Path(path), resume, tensorboard
        self.checkpoints = self.path / checkpoint.SUBFOLDER
        self._open_files = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as files:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = files.enter_context(open(self.path / LOCK, "a+", encoding="utf-8"))
                _lock(self._lock, self.path)
                self.checkpoints.mkdir(exist_ok=True)
                sync_folder(self.path)
                sync_folder(self.path.parent)
                for path in filter(is_left_over, self.path.iterdir()):
                    path.unlink()
                metrics = self.path / METRICS
                used = checkpoint.paths(self.checkpoints) or (metrics.exists() and metrics.stat().st_size)
            except OSError as error:
                raise ValueError(f"cannot write to --out {self.path}: {error.strerror or error}") from None
            if used and not self.resume:
                raise ValueError(
                    f"{self.path} already holds a run; go on with it (--resume), or give another folder (--out)"
                )
            self._open_files = files.pop_all()
        return self

    def __exit__(self, *error):
        self._open_files.close()

    def require_unmoved(self):
        """CheckpointNotWritten if the folder, or the metrics in it, were moved or removed meanwhile."""
        for file, name in ((self._lock, LOCK), (self._journal.file, METRICS)):
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(self.path / name))
            except OSError:
                same = False
            if not same:
                reason = "the folder of this run, or a file in it, was moved or removed while it trained"
                raise CheckpointNotWritten(errno.ENOENT, reason, str(self.path / name))

    def newest(self, report):
        """The newest good `Checkpoint`, or None before the first. Damaged ones are set aside and reported."""
        if not checkpoint.paths(self.checkpoints):
            report(f"no checkpoint in {self.path} yet: beginning at step 0")
            return None
        newest, damaged = checkpoint.newest(self.checkpoints)
        for path, reason in damaged:
            report(f"skipped: {reason} (kept as {checkpoint.set_aside(path).name})")
        return newest

    def journal(self, mark=None, step=0):
        """Open metrics and timings, cut back to where they were at ``mark``, that of the checkpoint of ``step``."""
        try:
            self._journal = self._open_files.enter_context(contextlib.closing(Journal(self.path, mark, step)))
        except OSError as error:
            raise ValueError(f"cannot write metrics to {self.path}: {error.strerror or error}") from None
        if self.tensorboard:
            self._journal.board = self._open_files.enter_context(_board(self.path / "tensorboard", step))
        return self._journal

    def keep_batch(self, step, batch, message):
        """Write the batch at which training failed, for diagnosis; the path."""
        path = self.path / "failed" / f"batch-{step:09d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tensors = {f"{index}": t.detach().cpu().contiguous() for index, t in enumerate(batch)}
        write_atomically(path, safetensors.torch.save(tensors))
        write_json(path.with_suffix(".json"), {"step": step, "error": message})
        return path


class Journal:
    """The two files of lines. `lines` holds what was read back of them: (metrics, timings), lists of dicts."""

    def __init__(self, folder, mark=None, step=0):
        metrics, timings = Path(folder, METRICS), Path(folder, TIMINGS)
        kept = _read_up_to(metrics, mark)
        times = [line for line in _timing_lines(timings) if line["step"] <= step] if step else []
        self.lines = [json.loads(line) for line in kept.splitlines()], times
        self.digest = hashlib.sha256(kept)
        self.bytes = len(kept)
        self.board = None
        write_atomically(metrics, kept)
        write_atomically(timings, b"".join(map(_json_line, times)))
        self.file, self._timings = open(metrics, "ab", 0), open(timings, "ab", 0)  # noqa: SIM115 see close()

    def metrics(self, **values):
        """Write one line of what can be repeated; to TensorBoard too, if it is on."""
        line = _json_line(values)
        self._append(self.file, line)
        self.digest.update(line)
        self.bytes += len(line)
        for name, value in values.items() if self.board is not None else ():
            if value is not None and name not in ("step", "windows"):
                self.board.add_scalar(name, value, values["step"])

    def timing(self, **values):
        """Write one line of what cannot be repeated."""
        self._append(self._timings, _json_line(values))

    def _append(self, file, line):
        try:
            file.write(line)
        except OSError as error:
            reason = f"a line could not be written ({error.strerror or error}); the checkpoints are whole"
            raise CheckpointNotWritten(error.errno, reason, file.name) from error

    def mark(self):
        """Where the metrics end, for a checkpoint: all before it is on the disk."""
        os.fsync(self.file.fileno())
        return {"bytes": self.bytes, "sha256": self.digest.hexdigest()}

    def close(self):
        """Close both files."""
        self.file.close()
        self._timings.close()


def _json_line(values):
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _read_up_to(path, mark):
    """The bytes of the metrics up to a checkpoint; ValueError if they are not those it was written after."""
    if mark is None:
        return b""
    content = path.read_bytes()[: mark["bytes"]] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != mark["sha256"]:
        raise ValueError(
            f"{path} does not hold the metrics that the checkpoint was written after; put them back, or train anew "
            "into another folder"
        )
    return content


def _timing_lines(path):
    """The whole lines of the timings, as dicts; the last one may have been cut by a crash."""
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError):
            value = json.loads(line)
            if isinstance(value, dict) and type(value.get("step")) is int and type(value.get("seconds")) is float:
                lines.append(value)
    return lines


def _lock(file, folder):
    """Lock the file for this process; ValueError with the process that holds it."""
    import fcntl  # not on Windows, where this project is not tested

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        raise ValueError(f"{folder} is in use by {holder}; wait for it, or give another folder") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def _board(folder, step):
    """TensorBoard's writer; events of steps after ``step``, from before a crash, are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--tensorboard needs TensorBoard: pip install 'reformer_ref[lab]'") from None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def differences(stored, asked, prefix=""):
    """[(name, "name is 128 in the checkpoint and 256 now"), …] of two JSON objects; nested names joined by dots."""
    lines = []
    for name in sorted(stored.keys() | asked.keys()):
        path = f"{prefix}{name}"
        then = stored.get(name)
        now = asked.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            lines += differences(then, now, f"{path}.")
        elif json.dumps(then) != json.dumps(now):  # a tuple is a list in JSON
            lines.append((path, f"{path} is {then!r} in the checkpoint and {now!r} now"))
    return lines
