"""Checkpoints: one safetensors file each, written whole or not at all. Loading one executes nothing.

The checkpoint of step n is ``step-<n, nine digits>.safetensors``. Its tensors are the weights, ``model/<name>``, and
the state of the optimiser, ``training/<name>``. The metadata in its header hold the number of the format, everything
else as JSON, and the SHA-256 of all that. A file gets its name only when all of it is on the disk, and the previous
checkpoint is kept, so the folder holds a good checkpoint at every moment after the first.
"""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from reformer_ref import __version__
from reformer_ref._arguments import require_int, short_repr
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from torch import Tensor, nn

from reformer_lab.training.files import as_path, open_regular, remove_left_overs, write_atomically

FORMAT = "4"
SUBFOLDER = "checkpoints"  # of the folder of a run
NAME = "step-{:09d}.safetensors"  # sorted as text they are in the order of steps
_MANIFEST = {"step": int, "model": str, "config": dict, "version": str, "state": dict}  # names and types of its values
_MODELS = {  # by the name of the class, which is made of these configurations
    "ReformerLM": (ReformerLM, ["config"]),
    "ReformerEncoderDecoder": (ReformerEncoderDecoder, ["encoder_config", "decoder_config"]),
}


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, damaged or not of this package; the message says which and where."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written (disk full, no permission, …); those before it are whole."""

    exit_code = 1


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint."""

    path: Path
    step: int
    model: str  # the name of its class
    config: dict  # {"config": …}, or {"encoder_config": …, "decoder_config": …}
    version: str  # of reformer_ref
    weights: dict[str, Tensor] = field(repr=False)
    training: dict[str, Tensor] = field(repr=False)  # the state of the optimiser
    state: dict  # what else its writer needs


def save(folder, model: nn.Module, *, step=0, weights=None, training=None, state=None) -> Path:
    """Write a checkpoint of ``model`` into ``folder``, made if need be; its path. The one before it stays there.

    Args:
        folder: path of a folder.
        model: ReformerLM, ReformerEncoderDecoder, or any other module (only `read` gives its weights back).
        step: number of training steps done.
        weights: {name: tensor}, those of ``model`` gathered from several processes; None: its state dict.
        training: {name: tensor}, the state of the optimiser.
        state: dict of JSON values, what else is needed to go on.

    Raises:
        CheckpointNotWritten: an OSError; the file could not be written. All earlier checkpoints are whole.
    """
    path = as_path("folder", folder) / NAME.format(require_int("step", step, 0, 10**9 - 1))
    training = {} if training is None else training
    state = {} if state is None else state
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Module, got {short_repr(model)}")
    weights = model.state_dict() if weights is None else weights
    for name, value in (("weights", weights), ("training", training), ("state", state)):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be a dict, got {short_repr(value)}")

    # Pack everything before anything is written. Tensors are copied: safetensors wants no memory that is shared.
    kind, config = described(model)
    manifest = {"step": step, "model": kind, "config": config, "version": __version__, "state": state}
    tensors = {f"model/{name}": t for name, t in weights.items()}
    tensors |= {f"training/{name}": t for name, t in training.items()}
    try:
        manifest = json.dumps(manifest, allow_nan=False)
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        metadata = {"format": FORMAT, "manifest": manifest, "sha256": _checksum(manifest, tensors)}
        content = safetensors.torch.save(tensors, metadata)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"training must hold tensors and state must hold JSON values: {error}") from None

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        # Of those before it, keep the newest: it is needed if this file is damaged later.
        before = [other for other in paths(path.parent) if other < path]
        for other in before[1:]:
            other.unlink(missing_ok=True)
        remove_left_overs(path.parent)
    except OSError as error:
        message = f"the checkpoint of step {step} could not be written ({error.strerror or error})"
        raise CheckpointNotWritten(error.errno, message, str(path)) from error
    return path


def described(model):
    """The name of a model's class and its configurations as JSON values, {} for modules of other packages."""
    for name, (cls, configs) in _MODELS.items():
        if isinstance(model, cls):
            return name, {config: json.loads(getattr(model, config).to_json()) for config in configs}
    return type(model).__name__, {}


def paths(folder) -> list[Path]:
    """List the checkpoints in a folder, the newest step first. Clocks and the files' dates play no part."""
    folder = Path(folder)
    everything = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in everything if re.fullmatch(r"step-\d{9}\.safetensors", path.name)), reverse=True)


def newest(folder) -> tuple[Checkpoint, list[tuple[Path, str]]]:
    """Read the newest good checkpoint in a folder, or in its subfolder "checkpoints".

    Returns it, and (path, what is wrong with it) of every newer one that is damaged. CheckpointError if none is good.
    """
    folder = as_path("folder", folder)
    if not folder.is_dir():
        reason = "it is not a folder" if folder.exists() else "there is no such folder"
        raise CheckpointError(f"no checkpoint in {folder}: {reason}; give that of a run, or of step-….safetensors")
    folder = folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder
    damaged = []
    for path in paths(folder):
        try:
            return read(path), damaged
        except CheckpointError as error:
            damaged.append((path, str(error)))
    reasons = "; ".join(reason for _, reason in damaged)
    reasons = reasons or "there is no step-….safetensors"
    raise CheckpointError(f"no good checkpoint in {folder}, put a copy back or train anew: {reasons}")


def read(path) -> Checkpoint:
    """Read one checkpoint. CheckpointError says what is wrong if it is damaged, or of something else."""
    path = as_path("path", path)
    with _refusing(path, "is damaged, or not a checkpoint"):
        with open_regular(path) as file:
            content = file.read()
        # safetensors checks sizes, types and offsets, so the header is short and valid JSON when it is read here.
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {metadata.get('format')!r:.40}, this version reads format {FORMAT}: use the "
                "release of reformer_ref that wrote it, if one did, or train anew"
            )
        if metadata.get("sha256") != _checksum(metadata["manifest"], tensors):
            raise ValueError("its contents do not have the checksum that it holds")
        # The manifest holds certain values, none of them NaN, and no others.
        manifest = json.loads(metadata["manifest"])
        json.dumps(manifest, allow_nan=False)  # ValueError for NaN
        if not isinstance(manifest, dict) or {name: type(value) for name, value in manifest.items()} != _MANIFEST:
            raise ValueError(f"its manifest must hold {', '.join(_MANIFEST)}, of the right types, and nothing else")
        if path.name != NAME.format(manifest["step"]):
            raise ValueError(f"it holds step {manifest['step']!r:.40}, which is not that of its name")
        # Every tensor belongs to the model or to the training.
        groups = {"model": {}, "training": {}}
        for name, t in tensors.items():
            group, _, rest = name.partition("/")
            if group not in groups:
                raise ValueError(f"it holds a tensor that belongs to nothing: {name!r:.80}")
            groups[group][rest] = t
    return Checkpoint(path=path, weights=groups["model"], training=groups["training"], **manifest)


def build(checkpoint: Checkpoint) -> nn.Module:
    """Build the model of a checkpoint anew, in eval mode on the CPU. CheckpointError if weights and config do not fit.

    The shapes are compared first, so that a configuration cannot ask for more memory than the file has.
    """
    path, weights = checkpoint.path, checkpoint.weights
    if checkpoint.model not in _MODELS:
        raise CheckpointError(f"{path} holds a model of another kind: {checkpoint.model!r:.40}")
    cls, names = _MODELS[checkpoint.model]
    with _refusing(path, "holds no usable model"):
        configs = [ReformerConfig.from_json(json.dumps(checkpoint.config[name])) for name in names]
        if sum(config.n_layers for config in configs) > len(weights):
            raise ValueError("it has fewer weights than layers; they are not of this configuration")
        dtypes = {t.dtype for t in weights.values() if t.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        with torch.device("meta"):
            expected = cls(*configs).to(dtype).state_dict()
        check_tensors(path, weights, expected)
        model = cls(*configs).to(dtype)
        model.load_state_dict(weights)
    return model.eval()


def load(folder, report=None) -> tuple[nn.Module, Checkpoint]:
    """Load the model of the newest checkpoint in a folder, or in the folder of a run, in eval mode on the CPU.

    If that is damaged it is a CheckpointError; with ``report``, a function of a line of text, it is reported instead,
    and the newest good one is taken. Returns the model and its checkpoint.
    """
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function or None, got {short_repr(report)}")
    checkpoint, damaged = newest(folder)
    if damaged and report is None:
        raise CheckpointError(f"{damaged[0][1]}; remove that file to take the one before it")
    for _, reason in damaged:
        report(f"skipped: {reason}")
    return build(checkpoint), checkpoint


def check_tensors(path, tensors, expected):
    """CheckpointError unless names, shapes and dtypes are those of ``expected`` and every value is finite."""
    got = {name: f"{t.dtype} {tuple(t.shape)}" for name, t in tensors.items()}
    want = {name: f"{t.dtype} {tuple(t.shape)}" for name, t in expected.items()}
    wrong = [f"{n} is {got.get(n)}, not {want.get(n)}" for n in sorted(got | want) if got.get(n) != want.get(n)]
    wrong += [f"{n} is infinite or NaN" for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if wrong:
        raise CheckpointError(f"{path} holds {len(wrong)} tensors that do not fit: {'; '.join(wrong[:2]):.400}")


def _checksum(manifest, tensors):
    """The SHA-256 of the text of a manifest and of names, types, shapes and values of tensors."""
    digest = hashlib.sha256(manifest.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def _refusing(path, problem):
    """Whatever bad contents of a file can raise becomes one CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} {problem}: {reason:.400}") from error
