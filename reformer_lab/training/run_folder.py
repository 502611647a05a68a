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
from reformer_lab.training.files import open_regular, remove_left_overs, sync_folder, write_atomically, write_json

LINES = {"metrics": "metrics.jsonl", "timings": "timings.jsonl"}
FILES = {"lock": ".lock", **LINES}
START = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}  # the mark of an empty file


class RunFolder:
    """A context manager that holds a folder for itself: no other process may train into it meanwhile.

    The lock is the system's (flock): it goes with the process, however that ends. ValueError if another process holds
    it, if a run is already there and ``resume`` is False, or if the folder cannot be written to.
    """

    def __init__(self, path, resume=False, tensorboard=False):
        self.path, self.resume, self.tensorboard = Path(path), resume, tensorboard
        self.checkpoints = self.path / checkpoint.SUBFOLDER
        self._files, self._stack = {}, contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                for name, file in FILES.items():
                    self._files[name] = stack.enter_context(open_regular(self.path / file, append=True))
                _lock(self._files["lock"], self.path)
                sync_folder(self.path)
                sync_folder(self.path.parent)
                remove_left_overs(self.path)
                used = checkpoint.paths(self.checkpoints) or self._size("metrics")
            except OSError as error:
                raise ValueError(f"cannot write to --out {self.path}: {error.strerror or error}") from None
            if used and not self.resume:
                raise ValueError(
                    f"{self.path} already holds a run; go on with it (--resume), or give another folder (--out)"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def newest(self, report):
        """The newest good `Checkpoint`, or None before the first. Damaged ones are set aside and reported."""
        if not checkpoint.paths(self.checkpoints):
            report(f"no checkpoint in {self.path} yet: beginning at step 0")
            return None
        newest, damaged = checkpoint.newest(self.checkpoints)
        for path, reason in damaged:
            path.rename(f"{path}.damaged")  # neither read again nor lost
            report(f"skipped: {reason} (kept as {path.name}.damaged)")
        return newest

    def cut_back(self, marks, step):
        """Cut metrics and timings back to `marks`, {} for a new run, made after ``step`` steps; their lines, as dicts.

        ValueError if they are not those that the marks were made of.
        """
        self._digests, lines = {}, {}
        for name in LINES:
            file, mark = self._files[name], marks.get(name, START)
            file.seek(0)
            content = file.read()[: mark["bytes"]]
            self._digests[name] = hashlib.sha256(content)
            if self._digests[name].hexdigest() != mark["sha256"]:
                raise ValueError(
                    f"{self.path / LINES[name]} does not hold the {name} that the checkpoint was written after; put "
                    "them back, or train anew into another folder"
                )
            file.truncate(len(content))
            lines[name] = [json.loads(line) for line in content.splitlines()]
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Events of later steps, from before a crash, are hidden.
            self._board = self._stack.enter_context(SummaryWriter(self.path / "tensorboard", purge_step=step + 1))
        return lines

    def add(self, name, **values):
        """Add a line to "metrics" or "timings"; numbers of the metrics go to TensorBoard too, if it is on."""
        line = (json.dumps(values, allow_nan=False) + "\n").encode()
        try:
            self._files[name].write(line)
        except OSError as error:
            reason = f"a line could not be written ({error.strerror or error}); the checkpoints are whole"
            raise CheckpointNotWritten(error.errno, reason, str(self.path / LINES[name])) from error
        self._digests[name].update(line)
        if self.tensorboard and name == "metrics":
            for key, value in values.items():
                if value is not None and key not in ("step", "windows"):
                    self._board.add_scalar(key, value, values["step"])

    def marks(self):
        """Where metrics and timings end, for a checkpoint: all before is on the disk, in the folder that it was in.

        CheckpointNotWritten if the folder, or a file that is open in it, was moved or removed meanwhile.
        """
        for name, file in self._files.items():
            path = self.path / FILES[name]
            if not path.exists() or not os.path.samefile(path, file.fileno()):
                reason = "the folder of this run, or a file in it, was moved or removed while it trained"
                raise CheckpointNotWritten(errno.ENOENT, reason, str(path))
            os.fsync(file.fileno())
        return {name: {"bytes": self._size(name), "sha256": self._digests[name].hexdigest()} for name in LINES}

    def _size(self, name):
        return os.fstat(self._files[name].fileno()).st_size

    def keep_batch(self, step, batch, message):
        """Write the batch at which training failed, for diagnosis; the path."""
        path = self.path / "failed" / f"batch-{step:09d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tensors = {f"{index}": t.detach().cpu().contiguous() for index, t in enumerate(batch)}
        write_atomically(path, safetensors.torch.save(tensors))
        write_json(path.with_suffix(".json"), {"step": step, "error": message})
        return path


def _lock(file, folder):
    """Lock the file for this process; ValueError with the process that holds it."""
    import fcntl  # not on Windows, where this project is not tested

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip() or "another process"
        raise ValueError(f"{folder} is in use by {holder}; wait for it, or give another folder") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def is_mark(value):
    """Whether a value can be one of `RunFolder.marks`."""
    return isinstance(value, dict) and type(value.get("bytes")) is int and isinstance(value.get("sha256"), str)


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
