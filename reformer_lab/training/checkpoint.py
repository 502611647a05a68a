"""Checkpoints: one safetensors file each, written whole or not at all. Loading one executes nothing.

The checkpoint of step n is ``step-<n, nine digits>.safetensors``. Its tensors are the weights, ``model/<name>``, and
the state of the optimiser, ``training/<name>``. The metadata in its header hold the number of the format, everything
else as JSON, and the SHA-256 of the file. A file gets its name only when all of it is on the disk, and the previous
checkpoint is kept, so the folder holds a good checkpoint at every moment after the first.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from reformer_ref import __version__
from reformer_ref._arguments import require_int, short_repr
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from torch import Tensor, nn

from reformer_lab.training.files import as_path, is_left_over, open_regular, write_atomically

FORMAT = 3
SUBFOLDER = "checkpoints"  # of the folder of a run
KEPT = 2
LONGEST_HEADER = 16 << 20  # bytes
_NAME = re.compile(r"step-(\d{9,18})\.safetensors")
_SHA256 = re.compile(rb'"sha256":"[0-9a-f]{64}"')  # quotes within the JSON of the manifest are escaped: one match
_MANIFEST = {"step": int, "model": str, "config": dict, "version": str, "state": dict}  # names and types of its values


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, damaged or not of this package; the message says which and where."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written (disk full, no permission, …); those before it are whole."""

    exit_code = 1


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    model and config: the kind and the configuration of the model; version: of reformer_ref; weights and training:
    {name: tensor} of the model and of the optimiser; state: what else its writer needs.
    """

    path: Path
    step: int
    model: str
    config: dict
    version: str
    weights: dict[str, Tensor] = field(repr=False)
    training: dict[str, Tensor] = field(repr=False)
    state: dict


# ---- writing


def save(folder, model: nn.Module, *, step=0, weights=None, training=None, state=None) -> Path:
    """Write a checkpoint of ``model`` into ``folder``, which is made if need be; the newest two stay there.

    Args:
        folder: path of a folder.
        model: ReformerLM, ReformerEncoderDecoder, or any other module (only `read` gives its weights back).
        step: number of training steps done.
        weights: {name: tensor}, those of ``model`` gathered from several processes; None: its state dict.
        training: {name: tensor}, the state of the optimiser.
        state: dict of JSON values, what else is needed to go on.

    Returns:
        The path of the checkpoint.

    Raises:
        CheckpointNotWritten: an OSError; the file could not be written. All earlier checkpoints are whole.
        ValueError, TypeError: an argument is of the wrong kind, or not JSON. Nothing was written.
    """
    folder = as_path("folder", folder)
    step = require_int("step", step, 0, 10**9 - 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {short_repr(model)}")
    training = {} if training is None else training
    state = {} if state is None else state
    if not isinstance(training, dict) or not all(
        isinstance(k, str) and torch.is_tensor(t) for k, t in training.items()
    ):
        raise TypeError(f"training must be a dict of names and tensors, got {short_repr(training)}")
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict of JSON values, got {short_repr(state)}")

    kind, config = described(model)
    manifest = {"step": step, "model": kind, "config": config, "version": __version__, "state": state}
    tensors = {f"model/{name}": t for name, t in (weights or model.state_dict()).items()}
    tensors |= {f"training/{name}": t for name, t in training.items()}
    try:
        content = _packed(manifest, tensors)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"state must hold JSON values: {error}") from None

    path = folder / f"step-{step:09d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        _remove_old(folder, path)
    except OSError as error:
        message = f"the checkpoint of step {step} could not be written ({error.strerror or error})"
        raise CheckpointNotWritten(error.errno, message, str(path)) from error
    return path


def described(model):
    """The kind of a model and its configuration as JSON values: the name of its class and {} for other modules."""
    if isinstance(model, ReformerLM):
        return "ReformerLM", json.loads(model.config.to_json())
    if isinstance(model, ReformerEncoderDecoder):
        both = {"encoder": model.encoder_config, "decoder": model.decoder_config}
        return "ReformerEncoderDecoder", {name: json.loads(config.to_json()) for name, config in both.items()}
    return type(model).__name__, {}


def _packed(manifest, tensors):
    """The bytes of a checkpoint file."""
    manifest = json.dumps(manifest, allow_nan=False)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"format": str(FORMAT), "manifest": manifest, "sha256": "0" * 64}
    content = safetensors.torch.save(tensors, metadata)
    return _SHA256.sub(b'"sha256":"%s"' % _digest(content).encode(), content, count=1)


def _digest(content):
    """The SHA-256 of a checkpoint file, with zeros where the file holds it."""
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    unsigned = _SHA256.sub(b'"sha256":"%s"' % (b"0" * 64), content[:end_of_header], count=1)
    digest = hashlib.sha256(unsigned)
    digest.update(memoryview(content)[end_of_header:])
    return digest.hexdigest()


def _remove_old(folder, newest):
    """Remove all but this checkpoint and the one before it, and what killed writers have left behind."""
    checkpoints = paths(folder)
    later = checkpoints.index(newest) if newest in checkpoints else 0  # of steps after it, written before a resume
    for path in [*checkpoints[later + KEPT :], *filter(is_left_over, folder.iterdir())]:
        path.unlink(missing_ok=True)


def set_aside(path):
    """Rename a damaged checkpoint to ``….damaged``, so that it is neither read again nor lost; its new path."""
    path = Path(path)
    return path.rename(path.with_name(path.name + ".damaged"))


# ---- reading


def paths(folder) -> list[Path]:
    """List the checkpoints in a folder, the newest step first. Clocks and the files' dates play no part."""
    folder = Path(folder)
    names = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return [folder / name for name in sorted(names, key=lambda name: int(_NAME.fullmatch(name)[1]), reverse=True)]


def newest(folder) -> tuple[Checkpoint, list[tuple[Path, str]]]:
    """Read the newest good checkpoint in a folder, or in its subfolder "checkpoints".

    Returns:
        The checkpoint, and (path, what is wrong with it) of every newer one that is damaged.

    Raises:
        CheckpointError: there is no good one; it says what is wrong with each.
    """
    folder = as_path("folder", folder)
    if not folder.exists():
        raise CheckpointError(f"no checkpoint in {folder}: there is no such folder")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a run, or of step-….safetensors")
    folder = folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder
    damaged = []
    for path in paths(folder):
        try:
            return read(path), damaged
        except CheckpointError as error:
            damaged.append((path, str(error)))
    if not damaged:
        raise CheckpointError(f"no checkpoint in {folder}: there is no step-….safetensors")
    raise CheckpointError(f"no good checkpoint in {folder}: " + "; ".join(reason for _, reason in damaged))


def read(path) -> Checkpoint:
    """Read one checkpoint and compare its checksum.

    Raises:
        CheckpointError: the file is damaged, or not a checkpoint; it says what is wrong.
    """
    path = as_path("path", path)
    content, header = _read_file(path)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not {"format", "manifest", "sha256"} <= metadata.keys():
        raise CheckpointError(f"{path} was not written by reformer_ref: its header holds no manifest")
    if metadata["format"] != str(FORMAT):
        raise CheckpointError(f"{path} has format {metadata['format']!r:.40}, this version reads format {FORMAT}")
    if metadata["sha256"] != _digest(content):
        raise CheckpointError(f"{path} is damaged: its contents do not have the checksum that it holds")
    manifest = _parsed(path, metadata["manifest"])
    wrong = [name for name, kind in _MANIFEST.items() if type(manifest.get(name)) is not kind]
    if wrong or manifest.keys() != _MANIFEST.keys():
        raise CheckpointError(f"{path} lacks something or holds something else: {', '.join(wrong) or list(manifest)}")
    if path.name != f"step-{manifest['step']:09d}.safetensors":
        raise CheckpointError(f"{path} holds step {manifest['step']!r:.40}, which is not that of its name")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no tensors: {error!s:.400}") from None
    groups = {"model": {}, "training": {}}
    for name, t in tensors.items():
        group, _, rest = name.partition("/")
        if group not in groups:
            raise CheckpointError(f"{path} holds a tensor that belongs to nothing: {name!r:.80}")
        groups[group][rest] = t
    return Checkpoint(path=path, weights=groups["model"], training=groups["training"], **manifest)


def _read_file(path):
    """The bytes of a file and the JSON of its safetensors header, whose length is checked before all is read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise CheckpointError(f"{path} is cut off, or not a safetensors file: {size:,} bytes")
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory: {size:,} bytes") from None
    return content, _parsed(path, content[8 : 8 + length])


def _parsed(path, text):
    """A dict from JSON text."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not JSON: {error!s:.200}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: its header holds something else than JSON objects")
    return value


def _refuse_constant(name):
    raise ValueError(f"{name} is not a JSON value")


# ---- models


def build(checkpoint: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint, in eval mode on the CPU.

    The shapes are compared before the model is built, so that a configuration cannot ask for more memory than the file
    has. The model is made anew, so nothing is ever half-loaded.

    Raises:
        CheckpointError: weights and configuration do not fit.
    """
    try:
        make = _model_maker(checkpoint)
        dtypes = {t.dtype for t in checkpoint.weights.values() if t.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        with torch.device("meta"):
            expected = make().to(dtype).state_dict()
        check_tensors(checkpoint.path, checkpoint.weights, expected)
        model = make().to(dtype)
        model.load_state_dict(checkpoint.weights, strict=True)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path} holds no usable model: {reason:.400}") from error
    return model.eval()


def _model_maker(checkpoint):
    """A function that makes a fresh model of the checkpoint's configuration."""
    if checkpoint.model == "ReformerLM":
        cls, configs = ReformerLM, [checkpoint.config]
    elif checkpoint.model == "ReformerEncoderDecoder":
        cls, configs = ReformerEncoderDecoder, [checkpoint.config.get("encoder"), checkpoint.config.get("decoder")]
    else:
        raise CheckpointError(f"{checkpoint.path} holds a model of another kind: {checkpoint.model!r:.40}")
    configs = [ReformerConfig.from_json(json.dumps(config)) for config in configs]
    if sum(config.n_layers for config in configs) > len(checkpoint.weights):
        raise CheckpointError(f"{checkpoint.path} has fewer weights than layers; they are not of this configuration")
    return lambda: cls(*configs)


def check_tensors(path, tensors, expected):
    """CheckpointError unless names, shapes and dtypes are those of ``expected`` and every value is finite."""
    got, want = ({name: f"{t.dtype} {tuple(t.shape)}" for name, t in ts.items()} for ts in (tensors, expected))
    wrong = [f"{n} is {got.get(n)}, not {want.get(n)}" for n in sorted(got | want) if got.get(n) != want.get(n)]
    wrong += [f"{n} is infinite or NaN" for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if wrong:
        raise CheckpointError(f"{path} holds {len(wrong)} tensors that do not fit: {'; '.join(wrong[:2]):.400}")


def load(folder, report=None) -> tuple[nn.Module, Checkpoint]:
    """Load the model of the newest checkpoint in a folder, or in the folder of a run.

    Args:
        folder: path of the folder.
        report: function of a line of text. With it, an older good checkpoint is taken if the newest is damaged, and
            report says so.

    Returns:
        The model, in eval mode on the CPU, and its checkpoint.

    Raises:
        CheckpointError: a ValueError; there is no checkpoint, or the newest is damaged and no report was given.
    """
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function or None, got {short_repr(report)}")
    checkpoint, damaged = newest(folder)
    if damaged and report is None:
        raise CheckpointError(damaged[0][1])
    for _, reason in damaged:
        report(f"skipped: {reason}")
    return build(checkpoint), checkpoint
