"""Weights of transformers' Reformer in a ReformerLM that computes the same logits, and back,
without transformers.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reformer_ref._arguments import clear_errors, require_bool, short_repr
from reformer_ref._tensors import require_tensor
from reformer_ref.huggingface.files import read_pretrained
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig, require_config
from reformer_ref.reversible.sharded import LOAD_IN_ONE_PROCESS, require_gathered

# Name in transformers: name in ReformerLM. {i} is the number of a layer, {p} is weight or bias.
MODEL_WEIGHTS = {
    "reformer.embeddings.word_embeddings.weight": "backbone.embedding.weight",
    "reformer.encoder.layer_norm.{p}": "backbone.norm.{p}",
    "lm_head.decoder.weight": "head.weight",
}
LAYER_WEIGHTS = {
    "attention.layer_norm.{p}": "0.norm.{p}",
    "attention.self_attention.value.weight": "0.v.weight",
    "attention.output.dense.weight": "0.out.weight",
    "feed_forward.layer_norm.{p}": "1.norm.{p}",
    "feed_forward.dense.dense.weight": "1.inner.w1",
    "feed_forward.dense.dense.bias": "1.inner.b1",
    "feed_forward.output.dense.weight": "1.inner.w2",
    "feed_forward.output.dense.bias": "1.inner.b2",
}
ATTENTION_WEIGHTS = {
    "lsh": {"attention.self_attention.query_key.weight": "0.q.weight"},
    "local": {
        "attention.self_attention.query.weight": "0.q.weight",
        "attention.self_attention.key.weight": "0.k.weight",
    },
}
POSITIONS = "reformer.embeddings.position_embeddings"
TRANSPOSED = re.compile(r".*\.feed_forward\.(dense|output)\.dense\.weight")
# Options of attention, of every kind and of LSH alone, that transformers has; others are fixed there.
CHOICES = ("chunk_length", "chunks_before", "chunks_after", "causal")
LSH_CHOICES = ("n_hashes", "n_buckets")
# Not weights, but early versions of transformers saved these constants among them.
CONSTANTS = re.compile(
    r"reformer\.encoder\.layers\.\d+\.attention\.self_attention\.(self_)?mask_value_float(16|32)"
)


@clear_errors
def config_from_huggingface(hf_config: object) -> ReformerConfig:
    """Translate a configuration of transformers.

    Layers follow ``attn_layers``; attention has the options of the preset "huggingface"; sequences
    are padded inside the model to the least common multiple of the chunk lengths in use, which
    matters because windows wrap. ``hidden_dropout_prob`` becomes ``dropout``; it acts in the same
    places, except inside the feed-forward layer and on the positions. Dropout of attention
    probabilities does not exist here and is left out. ``num_buckets=None`` stays None: here a pure
    function of the length, in transformers whatever suits the first length it meets, kept for ever.

    Args:
        hf_config: a ``transformers.ReformerConfig``, or any object with its attributes.

    Raises:
        ValueError: for what a ReformerLM does not have.
    """
    layers = tuple(hf_config.attn_layers)
    wrong = sorted(set(layers) - {"lsh", "local"})
    if wrong or not layers:
        raise ValueError(
            f'attn_layers must hold "lsh" and "local" only, at least one layer, got {list(layers)}'
        )
    if hf_config.hidden_act not in ("relu", "gelu"):
        raise ValueError(f'hidden_act must be "relu" or "gelu", got {hf_config.hidden_act!r}')
    chunk_lengths = [
        getattr(hf_config, f"{kind}_attn_chunk_length") for kind in sorted(set(layers))
    ]
    causal, axial = bool(hf_config.is_decoder), bool(hf_config.axial_pos_embds)
    longest = hf_config.max_position_embeddings
    return ReformerConfig(
        vocab_size=hf_config.vocab_size,
        d_model=hf_config.hidden_size,
        n_layers=len(layers),
        n_heads=hf_config.num_attention_heads,
        d_head=hf_config.attention_head_size,
        d_ff=hf_config.feed_forward_size,
        pattern=layers,
        max_length=min(longest, math.prod(hf_config.axial_pos_shape)) if axial else longest,
        positions="axial" if axial else "learned",
        axial_shape=tuple(hf_config.axial_pos_shape) if axial else None,
        axial_dims=tuple(hf_config.axial_pos_embds_dim) if axial else None,
        lsh=_lsh_options(hf_config, causal) if "lsh" in layers else None,
        local=_local_options(hf_config, causal) if "local" in layers else None,
        causal=causal,
        norm_eps=hf_config.layer_norm_eps,
        activation=hf_config.hidden_act,
        dropout=hf_config.hidden_dropout_prob,
        length_multiple=math.lcm(*chunk_lengths),
    )


def carry_over(
    model_class: type,
    model_or_state_dict: object,
    config: ReformerConfig | None = None,
    *,
    add_head_bias: bool = False,
) -> Any:
    """Build a ReformerLM with the weights of a Reformer of transformers, and equal logits.

    Users call ``ReformerLM.from_huggingface(model_or_state_dict, config)``. The model has the dtype,
    the device and the mode (training or eval) of the object; eval for a state dict. If the object's
    ``config.hash_seed`` is set, every layer's rotations are those that transformers draws in each
    call after seeding the global random state with it: the same numbers, drawn here without
    touching that state. Otherwise transformers draws afresh in each call, and the rotations here
    depend on ``config.seed``. Source: transformers 5.23.

    Args:
        model_class: ReformerLM or a subclass.
        model_or_state_dict: a ``ReformerModelWithLMHead`` or ``ReformerForMaskedLM``, or the state
            dict of one; or the path of a folder that ``save_pretrained`` wrote, or a name on the hub
            (see ``read_pretrained``).
        config: None derives it from the object's own (``config_from_huggingface``); a state dict
            has none, so there it must be given.
        add_head_bias: transformers 4 added ``lm_head.bias`` to the logits; transformers 5 keeps
            that weight and leaves it out, and so does this function. True adds it, as weights
            trained with transformers 4 expect. (A state dict with ``lm_head.decoder.bias`` comes
            from a head that adds it: there it always counts.)

    Raises:
        TypeError: for other objects.
        ValueError: one that lists all weights that are missing, unknown, of another shape or dtype,
            or all that transformers does not compute of a ``config``.
    """
    require_bool("add_head_bias", add_head_bias)
    if not (isinstance(model_class, type) and issubclass(model_class, torch.nn.Module)):
        raise TypeError(
            f"model_class must be ReformerLM or a subclass, got {short_repr(model_class)}"
        )
    source, hf_config = model_or_state_dict, None
    if isinstance(source, (str, Path)):
        source, hf_config = read_pretrained(source)
        config = config_from_huggingface(hf_config) if config is None else config
    if isinstance(source, torch.nn.Module):
        hf_config = getattr(source, "config", None)
        if getattr(hf_config, "model_type", None) != "reformer":
            raise TypeError(
                f"model_or_state_dict must be a Reformer of transformers, got {type(source).__name__}"
            )
        config = config_from_huggingface(hf_config) if config is None else config
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            f"model_or_state_dict must be a model or a dict of tensors, got {type(source).__name__}"
        )
    require_config(config)
    hash_seed = None if hf_config is None else hf_config.hash_seed
    _require_carriable(config, hash_seed)
    model = model_class(config)
    names = weight_names(config)
    shapes = _their_shapes(config, names, model.state_dict())
    weights, dtype, device = _require_weights(source, shapes)
    model.to(dtype=dtype, device=device).train(getattr(model_or_state_dict, "training", False))
    ours = model.state_dict()  # the parameters themselves, not copies
    for theirs, name in names.items():
        w = weights[theirs]
        ours[name].copy_(w.t() if TRANSPOSED.fullmatch(theirs) else w.reshape(ours[name].shape))
    bias = weights.get(
        "lm_head.decoder.bias", weights.get("lm_head.bias") if add_head_bias else None
    )
    ours["head.bias"].copy_(bias if bias is not None else torch.zeros(()))
    if hash_seed is not None:
        _fill_rotations(model, hash_seed)
    return model


def to_huggingface(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the weights of a ReformerLM into a state dict of transformers, on the CPU.

    ``ReformerModelWithLMHead.load_state_dict(…, strict=True)`` takes it. ``lm_head.bias`` and
    ``lm_head.decoder.bias`` are both our head's bias; transformers 5 adds neither to its logits.

    Args:
        model: a ReformerLM.

    Returns:
        Tensors by the names of transformers.

    Raises:
        TypeError: for anything but a ReformerLM.
        ValueError: for a model that transformers cannot compute, with every reason: other kinds of
            layers or positions, a tied head, one stream, ``d_v`` other than ``d_head``, options of
            attention other than ``config_from_huggingface`` gives; or sharded weights.
    """
    if not (
        isinstance(model, torch.nn.Module)
        and isinstance(getattr(model, "config", None), ReformerConfig)
    ):
        raise TypeError(f"model must be a ReformerLM, got {type(model).__name__}")
    _require_carriable(model.config, None)
    require_gathered("model", model, remedy=LOAD_IN_ONE_PROCESS)
    ours = model.state_dict()
    out = {}
    names = weight_names(model.config)
    shapes = _their_shapes(model.config, names, ours)
    for theirs, name in names.items():
        w = ours[name].detach().cpu()
        w = w.t() if TRANSPOSED.fullmatch(theirs) else w.reshape(shapes[theirs])
        out[theirs] = w.clone(memory_format=torch.contiguous_format)
    out["lm_head.bias"] = ours["head.bias"].detach().cpu().clone()
    return out


def weight_names(config: ReformerConfig) -> dict[str, str]:
    """Map names in transformers to names in ReformerLM, for all weights but the bias of the head,
    which is a choice.
    """
    require_config(config)
    names = dict(MODEL_WEIGHTS)
    if config.positions == "axial":
        for axis in range(len(config.axial_shape)):
            names[f"{POSITIONS}.weights.{axis}"] = f"backbone.positions.tables.{axis}"
    else:
        names[f"{POSITIONS}.embedding.weight"] = "backbone.positions.table"
    for i, kind in enumerate(config.layers):
        for theirs, ours in (LAYER_WEIGHTS | ATTENTION_WEIGHTS[kind]).items():
            names[f"reformer.encoder.layers.{i}.{theirs}"] = (
                f"backbone.stack.blocks.{i}.layers.{ours}"
            )
    return {
        theirs.replace("{p}", p): ours.replace("{p}", p)
        for theirs, ours in names.items()
        for p in (("weight", "bias") if "{p}" in theirs else ("",))
    }


def _lsh_options(hf_config, causal):
    n_buckets = hf_config.num_buckets
    return LSHOptions.preset(
        "huggingface",
        n_hashes=hf_config.num_hashes,
        n_buckets=tuple(n_buckets) if isinstance(n_buckets, (list, tuple)) else n_buckets,
        chunk_length=hf_config.lsh_attn_chunk_length,
        chunks_before=hf_config.lsh_num_chunks_before,
        chunks_after=hf_config.lsh_num_chunks_after,
        causal=causal,
    )


def _local_options(hf_config, causal):
    return LocalOptions(
        chunk_length=hf_config.local_attn_chunk_length,
        chunks_before=hf_config.local_num_chunks_before,
        chunks_after=hf_config.local_num_chunks_after,
        causal=causal,
        wrap=True,
    )


def _require_carriable(config, hash_seed):
    """One ValueError that lists what a Reformer of transformers does not compute: only what
    ``config_from_huggingface`` returns has its counterpart there, but for lengths, sizes of chunks
    that save memory, dropout and seed.
    """
    wrong = []
    kinds = set(config.layers)
    if not kinds <= {"lsh", "local"}:
        wrong.append(f'pattern must hold "lsh" and "local" only, got {config.pattern}')
    if config.positions not in ("axial", "learned"):
        wrong.append(f'positions must be "axial" or "learned", got {config.positions!r}')
    if config.positions == "axial" and len(config.axial_shape) != 2:
        wrong.append(f"axial_shape must have two axes, got {config.axial_shape}")
    if config.tie_head:
        wrong.append("tie_head must be False, because the head has weights of its own")
    if config.streams != 2:
        wrong.append(f"streams must be 2, got {config.streams}")
    if config.d_v != config.d_head:
        wrong.append(f"d_v must be d_head ({config.d_head}), got {config.d_v}")
    wrong += _wrong_options(config, kinds & {"lsh", "local"})
    if hash_seed is not None and "lsh" in kinds and config.lsh.n_buckets is None:
        wrong.append(
            "with a hash_seed n_buckets (num_buckets) must be given, because the rotations depend on it"
        )
    if wrong:
        raise ValueError(f"config does not fit weights of transformers: {'; '.join(wrong)}")


def _wrong_options(config, kinds):
    """What transformers does not compute of the options of these kinds of attention, and of the
    padding.
    """
    wrong = []
    # 1. Options: those of CHOICES are free, the others fixed.
    if "lsh" in kinds:
        expected = LSHOptions.preset("huggingface", **_choices(config.lsh, *LSH_CHOICES))
        wrong += _differences("lsh", config.lsh, expected)
    if "local" in kinds:
        local, choices = config.local, _choices(config.local)
        if local.scale == config.d_head**-0.5:  # what None stands for
            choices["scale"] = local.scale
        wrong += _differences("local", local, LocalOptions(wrap=True, **choices))
    # 2. Padding inside the model, which matters to windows that wrap. With one chunk length
    #    attention pads to it anyway.
    lengths = {getattr(config, kind).chunk_length for kind in kinds}
    multiple, given = math.lcm(*lengths), config.length_multiple
    if kinds and given != multiple and (len(lengths) > 1 or multiple % given):
        reason = "the least common multiple of the chunk lengths"
        wrong.append(f"length_multiple must be {multiple}, {reason}, got {given}")
    return wrong


def _choices(options, *more):
    """The options that a Reformer of transformers may have otherwise, as these have them."""
    choices = {name: getattr(options, name) for name in (*CHOICES, *more)}
    return choices | ({"chunks_after": 0} if options.causal else {})  # its rule for causal models


def _differences(name, options, expected):
    """A sentence for each field in which the options differ from the expected ones."""
    given = options.to_dict()
    return [
        f"{name}.{field} must be {value!r}, got {given[field]!r}"
        for field, value in expected.to_dict().items()
        if given[field] != value
    ]


def _their_shapes(config, names, ours):
    """{name in transformers: shape there}: feed-forward weights are transposed, axial tables have
    an axis per axis.
    """
    shapes = {}
    for theirs, name in names.items():
        shape = tuple(ours[name].shape)
        shapes[theirs] = shape[::-1] if TRANSPOSED.fullmatch(theirs) else shape
    axes = config.axial_shape if config.positions == "axial" else ()
    for axis, (n, d) in enumerate(zip(axes, config.axial_dims or (), strict=True)):
        sizes = [1] * len(axes)
        sizes[axis] = n
        shapes[f"{POSITIONS}.weights.{axis}"] = (*sizes, d)
    return shapes


def _require_weights(given, shapes):
    """(weights, their dtype, their device); one ValueError that lists everything wrong with
    ``given``.
    """
    given = {name: w for name, w in given.items() if not CONSTANTS.fullmatch(str(name))}
    allowed = shapes | dict.fromkeys(
        ("lm_head.bias", "lm_head.decoder.bias"), shapes["lm_head.decoder.weight"][:1]
    )
    known = {name: w for name, w in given.items() if name in allowed}
    tensors = {name: w for name, w in known.items() if _is_dense(w)}
    dtypes = [w.dtype for w in tensors.values() if w.is_floating_point()]
    dtype = max(dtypes, key=dtypes.count, default=torch.float32)  # the most common one
    wrong = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in given]
    wrong += [f"unknown: {name}" for name in given if name not in allowed]
    wrong += [
        f"not a {'dense ' if isinstance(w, torch.Tensor) else ''}tensor: {name} ({type(w).__name__})"
        for name, w in known.items()
        if name not in tensors
    ]
    for name, w in tensors.items():
        if tuple(w.shape) != allowed[name]:
            wrong.append(f"shape of {name}: must be {allowed[name]}, got {tuple(w.shape)}")
        elif not bool(w.isfinite().all()):
            wrong.append(f"not finite: {name}")
        if w.dtype != dtype:
            wrong.append(f"dtype of {name}: must be {dtype} as of the others, got {w.dtype}")
    if wrong:
        raise ValueError("the weights do not fit the configuration:\n  " + "\n  ".join(wrong))
    return tensors, dtype, tensors["lm_head.decoder.weight"].device


def _is_dense(w):
    try:
        require_tensor("the weight", w)
    except TypeError:
        return False
    return True


def _fill_rotations(model, hash_seed):
    """What ``torch.manual_seed(hash_seed); torch.randn(n_heads, d, n_hashes, width)`` gives, the
    same in each layer.
    """
    for name, rotations in model.named_buffers():
        if name.endswith(".rotations"):
            n_heads, n_hashes, d, width = rotations.shape
            generator = torch.Generator(rotations.device).manual_seed(hash_seed)
            like = {"dtype": rotations.dtype, "device": rotations.device}
            drawn = torch.randn(n_heads, d, n_hashes, width, generator=generator, **like)
            rotations.copy_(drawn.transpose(1, 2))
