"""Attention by the names that the paper's tables use: "full", "lsh-4" and so on, and models that
use it.
"""

import re
from dataclasses import replace

from reformer_ref._arguments import shown

KINDS = {"full": "dense", "scaled": "dense", "separate": "regular", "ordinary": "regular"}


def with_attention(config, name):
    """``config`` with this attention in every layer.

    "full": shared queries and keys, k̂ = q/‖q‖, everything visible; "scaled": the same with logits
    divided by √d; "lsh-N": N rounds; "separate": ordinary attention with keys of its own;
    "ordinary": ordinary attention whose keys are the queries as they are, not normalised, the token
    itself visible, logits divided by √d. ValueError for others.
    """
    from reformer_ref.model.config import require_config

    require_config(config)
    if not isinstance(name, str):
        raise TypeError(f"name must be that of an attention, got {shown(name)}")
    if name == "scaled":
        config = replace(config, lsh=replace(config.lsh, scale="rsqrt_d"))
    if name in KINDS:
        return replace(config, pattern=(KINDS[name],))
    word, _, rounds = name.partition("-")
    if word != "lsh" or not re.fullmatch("0*[1-9][0-9]{,8}", rounds):
        raise ValueError(f'attention must be "full", "scaled", "separate", "ordinary" or "lsh-N", got {shown(name)}')
    return replace(config, pattern=("lsh",), lsh=replace(config.lsh, n_hashes=int(rounds)))


def carried_over(model, config, name):
    """A model of the same weights with other attention, in eval mode. "ordinary" takes its keys
    from the queries.
    """
    from reformer_ref.model.pytorch import ReformerLM

    if not isinstance(model, ReformerLM):
        raise TypeError(f"model must be a ReformerLM, got {type(model).__name__}")
    other = ReformerLM(with_attention(config, name)).to(next(model.parameters()).dtype).eval()
    wanted, found = other.state_dict(), model.state_dict()
    if name == "ordinary":
        found |= {k.replace(".q.", ".k."): v for k, v in found.items() if k.endswith("layers.0.q.weight")}
    kept = {k: found[k] for k in wanted if k in found and not k.endswith("rotations")}  # rotations have other shapes
    lost = {k for k in wanted if k not in kept and not k.endswith("rotations")}
    if lost:
        raise ValueError(f"the model has no weights for {name}: {', '.join(sorted(lost))}")
    other_shapes = [k for k in kept if kept[k].shape != wanted[k].shape]
    if other_shapes:
        raise ValueError(f"config must be that of the model, got other shapes of {', '.join(other_shapes)}")
    other.load_state_dict({**wanted, **kept})
    return other
