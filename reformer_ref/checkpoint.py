"""A trained model on disk: weights as safetensors, everything else as JSON, nothing that runs code when loaded.

A checkpoint is a folder with `checkpoint.json` and the weights file that it names, `model-<12 digits of its
sha256>.safetensors`. Weights are written first and `checkpoint.json` is exchanged last, in one rename: at every instant
the folder holds one complete checkpoint, the old one or the new one. What is no longer named is removed afterwards.
"""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch

from reformer_ref import __version__
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

MANIFEST = "checkpoint.json"
FORMAT = 1
_WEIGHTS_NAME = re.compile(r"model-[0-9a-f]{12}\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, damaged or not one of ours; the message says which and where."""


def write_atomically(path, content):
    """Write bytes to ``path`` so that a crash leaves either the old file or the new one, never a part of it."""
    path = Path(path)
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def write_json(path, value):
    """Write a dict as JSON, one line per key, atomically. NaN and infinity, which are not JSON, raise ValueError."""
    lines = (f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items())
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def save(folder, model, config, extra=None):
    """Write a checkpoint of ``model`` (a ReformerLM with ``config``) into ``folder``, created if need be.

    ``extra``: any JSON value to keep beside the weights. Raises OSError (disk full, no permission, …) and ValueError
    (``extra`` is no JSON); the previous checkpoint is then still whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    content = safetensors.torch.save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    weights = f"model-{digest[:12]}.safetensors"
    meta = {
        "format": FORMAT,
        "version": __version__,
        "weights": {"file": weights, "sha256": digest, "bytes": len(content)},
        "config": json.loads(config.to_json()),
        "extra": extra,
    }
    json.dumps(meta, allow_nan=False)  # fail before anything is written
    write_atomically(folder / weights, content)
    write_json(folder / MANIFEST, meta)
    for old in folder.glob("model-*.safetensors"):
        if old.name != weights and _WEIGHTS_NAME.fullmatch(old.name):
            old.unlink(missing_ok=True)


def load(folder):
    """(model in eval mode on the CPU, meta), as `save` wrote them; CheckpointError (a ValueError) if any is wrong."""
    folder = Path(folder)
    meta = _read_manifest(folder)
    path = folder / meta["weights"]["file"]
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != meta["weights"]["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}")
    try:
        config = ReformerConfig.from_json(json.dumps(meta["config"]))
        tensors = safetensors.torch.load(content)
        model = ReformerLM(config)
        model.load_state_dict(tensors, strict=True)
    except (ValueError, TypeError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable model: {error}") from error
    return model.eval(), meta


def _read(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint in {path.parent}: {path.name} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_manifest(folder):
    path = folder / MANIFEST
    try:
        meta = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    weights = meta.get("weights") if isinstance(meta, dict) else None
    name = weights.get("file") if isinstance(weights, dict) else None
    if not isinstance(name, str) or "sha256" not in weights or not isinstance(meta.get("config"), dict):
        raise CheckpointError(f"{path} lacks 'weights' (file, sha256) or 'config'; it was not written by reformer_ref")
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {meta.get('format')!r}, this version reads format {FORMAT}")
    if not _WEIGHTS_NAME.fullmatch(name):  # no separators: a checkpoint cannot name a file outside its folder
        raise CheckpointError(f"{path} names the weights file {name!r}; expected model-<12 hex digits>.safetensors")
    return meta
