"""Checkpoints: weights and optimiser state as safetensors, everything else as JSON, nothing that
runs code when loaded.

A checkpoint of step n is the manifest ``step-<n, nine digits>.json`` and the files whose checksums
it holds, which are named after them: ``model-<16 digits of the sha256>.safetensors`` and, to go on
training, ``training-….safetensors``. Those are written first and the manifest last, in one rename:
at every instant the folder holds complete checkpoints only. The newest two are kept; only then is
what they do not name removed. A manifest holds its own checksum too.
"""

import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from reformer_ref import __version__
from reformer_ref._arguments import require_int, shown
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from torch import nn

from reformer_lab.training.files import as_path, left_over, open_regular, write_atomically, write_json

FORMAT = 2
SUBFOLDER = "checkpoints"  # of the folder of a run
KEPT = 2
MOST_JSON = 16 << 20  # bytes of a manifest, and of the header of a safetensors file
_MANIFEST = re.compile(r"step-(\d{9,18})\.json")
_DATA = re.compile(r"(model|training)-([0-9a-f]{16})\.safetensors")
_KINDS = ("model", "training")


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, damaged or not one of ours; the message says which and
    where.
    """


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written (disk full, no permission, …); those before it are whole."""

    exit_code = 1


@dataclass(frozen=True)
class Checkpoint:
    """What was read and found whole: step, model (kind and configuration), tensors, and the JSON
    values kept beside.

    weights: {name: tensor} of the model; training: {name: tensor} of the optimiser, or None; state:
    what the training loop needs besides; extra: what the caller gave to `save`; version: of
    reformer_ref; path: of the manifest.
    """

    path: Path
    step: int
    model: str
    config: dict
    version: str
    weights: dict = field(repr=False)
    training: dict | None = field(repr=False)
    state: dict
    extra: object


# ---- writing


def save(folder, model, *, step=0, training=None, state=None, extra=None, keep=KEPT):
    """Write a checkpoint of ``model`` into ``folder``, created if need be; the path of its
    manifest.

    model: ReformerLM, ReformerEncoderDecoder, or any other module (only `read` then gives its
    weights back). training: {name: tensor}; state: dict of JSON values; extra: any JSON value.
    keep: checkpoints that stay. Raises CheckpointNotWritten (an OSError) if the files cannot be
    written, ValueError or TypeError for values that are no JSON. In both cases all earlier
    checkpoints are whole.
    """
    folder, step, keep = (as_path("folder", folder), require_int("step", step, 0, 10**9 - 1), require_int("keep", keep))
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shown(model)}")
    for name, value in (("training", training), ("state", state)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"{name} must be a dict or None, got {shown(value)}")
    if training is not None and not all(isinstance(k, str) and torch.is_tensor(t) for k, t in training.items()):
        raise TypeError("training must have names for keys and tensors for values")
    kind, config = described(model)
    parts = {"model": model.state_dict()} | ({} if training is None else {"training": training})
    content = {part: _packed(tensors) for part, tensors in parts.items()}
    manifest = {
        "format": FORMAT, "version": __version__, "step": step, "model": kind, "config": config,
        "files": {p: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for p, c in content.items()},
        "state": {} if state is None else state, "extra": extra,
    }  # fmt: skip
    try:
        manifest["sha256"] = _digest(manifest)  # before anything is written
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"state and extra must be JSON values: {error}") from None
    path = folder / f"step-{step:09d}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, data in content.items():
            write_atomically(folder / _data_name(part, manifest["files"][part]["sha256"]), data)
        write_json(path, manifest)
        _remove_old(folder, path, keep)
    except OSError as error:
        raise CheckpointNotWritten(
            error.errno, f"the checkpoint of step {step} could not be written ({error.strerror or error})", str(path)
        ) from error
    return path


def described(model):
    """(kind, configuration as JSON values) of a model; the name of its class and {} for a model of
    another kind.
    """
    if isinstance(model, ReformerLM):
        return "ReformerLM", json.loads(model.config.to_json())
    if isinstance(model, ReformerEncoderDecoder):
        both = {"encoder": model.encoder_config, "decoder": model.decoder_config}
        return "ReformerEncoderDecoder", {name: json.loads(config.to_json()) for name, config in both.items()}
    return type(model).__name__, {}


def _packed(tensors):
    return safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def _digest(manifest):
    """The checksum of everything else in a manifest, whatever the order and the blanks."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _data_name(part, sha256):
    return f"{part}-{sha256[:16]}.safetensors"


def _remove_old(folder, newest, keep):
    """Remove manifests before the ``keep`` newest ones, then the files that no manifest names any
    more.
    """
    paths = manifests(folder)
    later = paths.index(newest) if newest in paths else 0  # of steps after this one, from a time before a resume
    for path in paths[later + keep :]:
        path.unlink(missing_ok=True)
    named = set()
    for path in folder.glob("step-*.json*"):  # those set aside too
        try:
            with open_regular(path, MOST_JSON) as file:
                named |= set(re.findall(rb'"sha256": "([0-9a-f]{16})', file.read()))
        except OSError:
            return  # what it names is not known: remove nothing
    for path in folder.iterdir():
        data = _DATA.fullmatch(path.name)
        if (data and data[2].encode() not in named) or left_over(path):
            path.unlink(missing_ok=True)


def set_aside(path):
    """Rename a damaged manifest to ``….damaged``, so that it is neither found again nor lost; its
    new path.
    """
    path = Path(path)
    return path.rename(path.with_name(path.name + ".damaged"))


# ---- reading


def manifests(folder):
    """Paths of the manifests in a folder, the newest step first; the clock and the files' dates
    play no part.
    """
    folder = Path(folder)
    found = [path for path in folder.iterdir() if _MANIFEST.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(_MANIFEST.fullmatch(path.name)[1]), reverse=True)


def newest(folder):
    """(the newest good `Checkpoint` in a folder, or in its subfolder "checkpoints"; [(path, why it
    was skipped), …]).

    CheckpointError if there is none; it says what is wrong with each.
    """
    folder = _holding(folder)
    skipped = []
    for path in manifests(folder):
        try:
            return read(path), skipped
        except CheckpointError as error:
            skipped.append((path, str(error)))
    if not skipped:
        raise CheckpointError(f"no checkpoint in {folder}: there is no step-….json")
    raise CheckpointError(f"no good checkpoint in {folder}: " + "; ".join(why for _, why in skipped))


def _holding(folder):
    folder = as_path("folder", folder)
    if not folder.exists():
        raise CheckpointError(f"no checkpoint in {folder}: there is no such folder")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the folder that holds step-….json, or that of the run")
    return folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder


def read(path):
    """The `Checkpoint` of one manifest, all checksums compared; CheckpointError says what is wrong."""
    path = as_path("path", path)
    manifest = _read_manifest(path)
    tensors = {part: _read_tensors(path, part, entry) for part, entry in manifest["files"].items()}
    return Checkpoint(
        path, manifest["step"], manifest["model"], manifest["config"], manifest["version"], tensors["model"],
        tensors.get("training"), manifest["state"], manifest["extra"],
    )  # fmt: skip


def _read_manifest(path):
    try:
        with open_regular(path, MOST_JSON) as file:
            manifest = json.loads(file.read(), parse_constant=_refuse_constant)
            digest = _digest(manifest) if isinstance(manifest, dict) else None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{path} is no manifest of a checkpoint: it was not written by reformer_ref")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {manifest['format']!r:.40}, this version reads format {FORMAT}")
    if manifest.get("sha256") != digest:
        raise CheckpointError(f"{path} is damaged: its contents are not those that its checksum was made of")
    step, files = manifest.get("step"), manifest.get("files")
    if type(step) is not int or path.name != f"step-{step:09d}.json":
        raise CheckpointError(f"{path} holds step {step!r:.40}, which is not that of its name")
    kinds = {"model": str, "config": dict, "version": str, "files": dict, "state": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if wrong or "extra" not in manifest or not {"model"} <= set(files) <= set(_KINDS):
        raise CheckpointError(f"{path} lacks something or holds something else: {', '.join(wrong) or 'files, extra'}")
    for part, entry in files.items():
        known = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        if not known or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
            raise CheckpointError(f"{path} must give bytes and sha256 of its {part} file, got {entry!r:.80}")
    return manifest


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def _read_tensors(manifest, part, entry):
    """{name: tensor} of one file; sizes and checksum must be those in the manifest."""
    path = manifest.with_name(_data_name(part, entry["sha256"]))
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{path} is damaged: it has {size:,} bytes instead of {entry['bytes']:,}")
            _check_header(path, file.read(8), size)
            file.seek(0)
            content = file.read()
    except FileNotFoundError:
        raise CheckpointError(f"{manifest} is incomplete: {path.name} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory: {entry['bytes']:,} bytes") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {manifest.name}")
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no tensors: {error}") from None


def _check_header(path, first, size):
    """Before the file is read whole: is its header as long as it says, and not absurdly so?"""
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
    if length > min(size - 8, MOST_JSON):
        raise CheckpointError(f"{path} is no safetensors file: its header would have {length:,} bytes")


# ---- models


def build(checkpoint):
    """The model of a `Checkpoint`, in eval mode on the CPU; CheckpointError if weights and
    configuration do not fit.

    The shapes are compared before the model is built, so that a configuration cannot ask for more
    memory than the file has; the model is made anew, so nothing is ever half-loaded.
    """
    where = checkpoint.path
    try:
        make = _maker(checkpoint)
        dtypes = {t.dtype for t in checkpoint.weights.values() if t.is_floating_point()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        with torch.device("meta"):
            expected = make().to(dtype).state_dict()
        check_tensors(where, checkpoint.weights, expected)
        model = make().to(dtype)
        model.load_state_dict(checkpoint.weights, strict=True)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{where} holds no usable model: {' '.join(str(error).split())}") from error
    return model.eval()


def _maker(checkpoint):
    """A function that builds a fresh model of the checkpoint's configuration."""
    kinds = {"ReformerLM": (ReformerLM, ()), "ReformerEncoderDecoder": (ReformerEncoderDecoder, ("encoder", "decoder"))}
    if checkpoint.model not in kinds:
        raise CheckpointError(f"{checkpoint.path} holds a model of another kind: {checkpoint.model!r:.40}")
    cls, names = kinds[checkpoint.model]
    values = [checkpoint.config.get(name) for name in names] if names else [checkpoint.config]
    configs = [ReformerConfig.from_json(json.dumps(value)) for value in values]
    if sum(config.n_layers for config in configs) > len(checkpoint.weights):
        raise CheckpointError(f"{checkpoint.path} has fewer weights than layers; they are not of this configuration")
    return lambda: cls(*configs)


def check_tensors(where, tensors, expected):
    """CheckpointError unless names, shapes and dtypes agree with {name: tensor} and every value is
    finite.
    """
    missing, unknown = (sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys()))
    if missing or unknown:
        what = [f"{n} {kind} ({names[0]}, …)" for n, kind, names in
                ((len(missing), "missing", missing), (len(unknown), "unknown", unknown)) if names]  # fmt: skip
        raise CheckpointError(f"{where} holds no usable model, its weights do not fit: {', '.join(what)}")
    for name, want in expected.items():
        got = tensors[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise CheckpointError(
                f"{where} holds no usable model: {name} must be {want.dtype} of shape {tuple(want.shape)}, got "
                f"{got.dtype} of {tuple(got.shape)}"
            )
        if got.is_floating_point() and not torch.isfinite(got).all():
            raise CheckpointError(f"{where} holds no usable model: {name} has infinite values or no numbers")


def load(folder, report=None):
    """(model in eval mode on the CPU, `Checkpoint`) of the newest checkpoint in a folder, or in the
    folder of a run.

    CheckpointError (a ValueError) if any part of it is damaged. With ``report``, a function of a
    line of text, an older good one is taken instead, and report says so.
    """
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function or None, got {shown(report)}")
    checkpoint, skipped = newest(folder)
    if skipped and report is None:
        raise CheckpointError(skipped[0][1])
    for _, why in skipped:
        report(f"skipped: {why}")
    return build(checkpoint), checkpoint
