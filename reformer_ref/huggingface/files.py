"""Reading a Reformer of transformers from a folder, or by its name on the hub; transformers itself
is not needed.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from reformer_ref._arguments import short_repr

# What transformers assumes where config.json is silent (its ReformerConfig, release 5.23).
DEFAULTS = {
    "attention_head_size": 64, "attn_layers": ["local", "lsh", "local", "lsh", "local", "lsh"], "axial_pos_embds": True,
    "axial_pos_embds_dim": [64, 192], "axial_pos_shape": [64, 64], "feed_forward_size": 512, "hash_seed": None,
    "hidden_act": "relu", "hidden_dropout_prob": 0.05, "hidden_size": 256, "is_decoder": False, "layer_norm_eps": 1e-12,
    "local_num_chunks_before": 1, "local_num_chunks_after": 0, "local_attn_chunk_length": 64,
    "lsh_attn_chunk_length": 64,
    "lsh_num_chunks_before": 1, "lsh_num_chunks_after": 0, "max_position_embeddings": 4096, "num_attention_heads": 12,
    "num_buckets": None, "num_hashes": 1, "vocab_size": 320,
}  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_pretrained(source: str | Path) -> tuple[dict[str, torch.Tensor], SimpleNamespace]:
    """Read the weights and the configuration of a Reformer of transformers.

    Weights: model.safetensors, the files that model.safetensors.index.json lists, or
    pytorch_model.bin, of which nothing but tensors is read.

    Args:
        source: a folder with config.json and weights, or a name such as ``google/reformer-enwik8``,
            which is fetched by ``huggingface_hub``, if that is installed.

    Returns:
        State dict and configuration.

    Raises:
        TypeError: for anything but a path or a name.
        ValueError: for what is missing, damaged or not a Reformer; nothing is half-loaded.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"source must be a folder or a name on the hub, got {type(source).__name__}"
        )
    folder = Path(source)
    if not os.path.isdir(folder):  # Path.is_dir raises an error for too long a name
        folder = _fetch(str(source))
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "reformer":
        raise ValueError(
            f"{folder / 'config.json'} must describe a Reformer, got model_type {config.get('model_type')!r}"
        )
    weights_file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights_file is None:
        raise ValueError(f"no weights in {folder}: none of {', '.join(WEIGHTS)}")
    files = [weights_file]
    if weights_file.suffix == ".json":
        listed = _read_json(weights_file).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(
                f"{weights_file} must list the files of the weights under weight_map, got {short_repr(listed)}"
            )
        files = sorted({_inside(folder, name) for name in listed.values()})
    weights = {}
    for file in files:
        weights |= _read_tensors(file)
    return weights, SimpleNamespace(**(DEFAULTS | config))


def _read_tensors(path):
    """{name: tensor} of a file; ValueError if it is not what its name says. Nothing in it is
    executed.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as weights: {reason}") from None
    if not isinstance(weights, dict):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(weights).__name__}")
    return weights


def _read_json(path):
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def _inside(folder, name):
    """The file of this name in the folder; names that lead elsewhere are refused."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{folder} lists a part of the weights outside the folder: {name!r}")
    return folder / name


def _fetch(name):
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ValueError(
            f"source {short_repr(name)} is no folder here; "
            "to fetch a name from the hub: pip install 'reformer_ref[hub]'"
        ) from None
    try:
        return Path(
            snapshot_download(name, allow_patterns=["config.json", *WEIGHTS, "*.safetensors"])
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"source {short_repr(name)} is no folder here, nor to be had from the hub: {reason}"
        ) from None
