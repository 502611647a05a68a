"""Weights of transformers' Reformer in a ReformerLM that computes the same logits. transformers itself is not needed."""

import math
import re

import torch

from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

# Not weights: constants that transformers kept among the weights until version 3.
CONSTANTS = re.compile(r"reformer\.encoder\.layers\.\d+\.attention\.self_attention\.(self_)?mask_value_float(16|32)")


def config_from_huggingface(hf_config):
    """The ReformerConfig of the same function as a ``transformers.ReformerConfig`` (any object with its attributes).

    Layers follow ``attn_layers``, attention has the options of the preset "huggingface", and sequences are padded inside
    the model to the least common multiple of the chunk lengths in use, which matters because windows wrap.

    ``hidden_dropout_prob`` becomes ``dropout``; it acts in the same places but inside the feed-forward layer and on
    positions. Dropout of attention probabilities is not offered here and is left out. Neither plays a part in eval mode.
    ``num_buckets=None`` stays None: a pure function of the length here, while transformers takes the first length it
    meets and keeps that number for ever. ValueError for what a ReformerLM does not have.
    """
    layers = tuple(hf_config.attn_layers)
    wrong = sorted(set(layers) - {"lsh", "local"})
    if wrong or not layers:
        raise ValueError(f'attn_layers must hold "lsh" and "local" only, at least one layer, got {list(layers)}')
    if hf_config.hidden_act not in ("relu", "gelu"):
        raise ValueError(f'hidden_act must be "relu" or "gelu", got {hf_config.hidden_act!r}')
    chunk_lengths = [getattr(hf_config, f"{kind}_attn_chunk_length") for kind in sorted(set(layers))]
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


def from_huggingface(model_or_state_dict, config=None, *, add_head_bias=False, model_class=ReformerLM):
    """A ReformerLM with the weights, the dtype and the device of a Reformer of transformers, and equal logits.

    model_or_state_dict: a ``ReformerModelWithLMHead`` or ``ReformerForMaskedLM``, or the state dict of one.
    config: ReformerConfig. None derives it from the object's own (``config_from_huggingface``); a state dict has none,
        so there it must be given.
    add_head_bias: transformers 4 added ``lm_head.bias`` to the logits; transformers 5 keeps that weight and leaves it
        out, and so does this function. True adds it, as weights trained with transformers 4 expect. (A state dict with
        ``lm_head.decoder.bias`` comes from a head that adds it: there it always counts.)

    If the object's ``config.hash_seed`` is set, every layer's rotations are those that transformers draws in each call
    after seeding the global random state with it: the same numbers, drawn here without touching that state. Otherwise
    transformers draws afresh in each call, and the rotations here depend on ``config.seed``. The mode (training or
    eval) is the object's; eval for a state dict.

    One ValueError lists all weights that are missing, unknown, of another shape or dtype. Source: transformers 5.23.
    """
    source, hf_config = model_or_state_dict, None
    if isinstance(source, torch.nn.Module):
        hf_config = source.config
        config = config_from_huggingface(hf_config) if config is None else config
    if not isinstance(config, ReformerConfig):
        raise TypeError(f"config must be a ReformerConfig, got {type(config).__name__}")
    weights = source if hf_config is None else source.state_dict()
    if not hasattr(weights, "items"):
        raise TypeError(f"model_or_state_dict must be a model or a dict of tensors, got {type(source).__name__}")
    _require_same_architecture(config)
    model = model_class(config)
    ours, names = model.state_dict(), weight_names(config)
    weights, dtype, device = _require_weights(weights, {theirs: ours[name].shape for theirs, name in names.items()})
    model.to(dtype=dtype, device=device).train(hf_config is not None and source.training)
    ours = model.state_dict()
    with torch.no_grad():
        for theirs, name in names.items():
            ours[name].copy_(_in_our_shape(theirs, weights[theirs]))
        bias = weights.get("lm_head.decoder.bias", weights.get("lm_head.bias") if add_head_bias else None)
        ours["head.bias"].copy_(torch.zeros(()) if bias is None else bias)
        if hf_config is not None and hf_config.hash_seed is not None:
            _fill_rotations(model, hf_config.hash_seed)
    return model


def weight_names(config):
    """{name in transformers: name in ReformerLM} for all weights but the bias of the head, which is a choice."""
    names = {"reformer.embeddings.word_embeddings.weight": "trunk.embedding.weight"}
    if config.positions == "axial":
        for i in range(len(config.axial_shape)):
            names[f"reformer.embeddings.position_embeddings.weights.{i}"] = f"trunk.positions.tables.{i}"
    else:
        names["reformer.embeddings.position_embeddings.embedding.weight"] = "trunk.positions.table"
    for i, kind in enumerate(config.layers):
        layer, halves = f"reformer.encoder.layers.{i}", f"trunk.stack.blocks.{i}.halves"
        attention, forward = f"{layer}.attention", f"{layer}.feed_forward"
        projections = {"query_key": "q", "value": "v"} if kind == "lsh" else {"query": "q", "key": "k", "value": "v"}
        names |= {f"{attention}.layer_norm.{p}": f"{halves}.0.norm.{p}" for p in ("weight", "bias")}
        names |= {f"{attention}.self_attention.{t}.weight": f"{halves}.0.{o}.weight" for t, o in projections.items()}
        names[f"{attention}.output.dense.weight"] = f"{halves}.0.out.weight"
        names |= {f"{forward}.layer_norm.{p}": f"{halves}.1.norm.{p}" for p in ("weight", "bias")}
        for number, dense in ((1, "dense.dense"), (2, "output.dense")):
            names[f"{forward}.{dense}.weight"] = f"{halves}.1.inner.w{number}"
            names[f"{forward}.{dense}.bias"] = f"{halves}.1.inner.b{number}"
    names |= {f"reformer.encoder.layer_norm.{p}": f"trunk.norm.{p}" for p in ("weight", "bias")}
    names["lm_head.decoder.weight"] = "head.weight"
    return names


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


def _require_same_architecture(config):
    """ValueError unless the weights of transformers have a place for every weight of this configuration."""
    wrong = []
    if not set(config.layers) <= {"lsh", "local"}:
        wrong.append(f'pattern must hold "lsh" and "local" only, got {config.pattern}')
    if config.positions not in ("axial", "learned"):
        wrong.append(f'positions must be "axial" or "learned", got {config.positions!r}')
    if config.tie_head:
        wrong.append("tie_head must be False: the head reads both streams with weights of its own")
    if wrong:
        raise ValueError(f"config does not fit weights of transformers: {'; '.join(wrong)}")


def _require_weights(weights, shapes):
    """(weights without constants, their dtype, their device); ValueError that lists everything wrong with them.

    shapes: {name: shape of the weight in ReformerLM}.
    """
    weights = {name: w for name, w in weights.items() if not CONSTANTS.fullmatch(str(name))}
    want = {name: _their_shape(name, tuple(shape)) for name, shape in shapes.items()}
    bias_shape = want["lm_head.decoder.weight"][:1]
    optional = {"lm_head.bias": bias_shape, "lm_head.decoder.bias": bias_shape}
    wrong = [f"missing {name} {shape}" for name, shape in want.items() if name not in weights]
    wrong += [f"unknown {name}" for name in weights if name not in want | optional]
    known = {name: weights[name] for name in want | optional if name in weights}
    wrong += [f"{name} is no tensor but {type(w).__name__}" for name, w in known.items() if not torch.is_tensor(w)]
    known = {name: w for name, w in known.items() if torch.is_tensor(w)}
    for name, w in known.items():
        if not _shape_fits(name, tuple(w.shape), (want | optional)[name]):
            wrong.append(f"{name} must have shape {(want | optional)[name]}, got {tuple(w.shape)}")
    dtypes = [w.dtype for w in known.values() if w.is_floating_point()]
    dtype = max(dict.fromkeys(dtypes), key=dtypes.count, default=torch.float32)  # the most common one
    wrong += [f"{name} must be {dtype} as the others, got {w.dtype}" for name, w in known.items() if w.dtype != dtype]
    if wrong:
        raise ValueError(f"the weights do not fit, {len(wrong)} of them:\n  " + "\n  ".join(wrong))
    return known, dtype, known["lm_head.decoder.weight"].device
