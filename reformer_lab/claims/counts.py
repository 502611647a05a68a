"""What the paper says without a figure: close vectors collide, rounds recall attention, layers find
inputs again.
"""

import math
from dataclasses import replace

import torch
from reformer_ref._tensors import evaluating
from reformer_ref.attention.pytorch import normalize_keys
from reformer_ref.hashing.api import hash_vectors, random_rotations
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.model.config import n_buckets_for
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.reversible import reversible_stack, reversible_stack_inverse

from reformer_lab.claims import language
from reformer_lab.claims.experiment import config_of
from reformer_lab.claims.table import on_given, row


def sub_runs(config):
    """Three: "collisions", "recall", "reconstruction"."""
    return {
        "collisions": {"seed": config["seeds"][0], **config["collisions"]},
        "recall": {
            **language.settings_of(config["recall"], config["seeds"][0], "full"), "rounds": config["recall"]["rounds"]
        },
        "reconstruction": {"seed": config["seeds"][0], **config["reconstruction"]},
    }  # fmt: skip


def run(settings, context):
    """One of the three, known by what its settings hold."""
    if "angles" in settings:
        return collisions(settings)
    return recall(settings, context) if "rounds" in settings else reconstruction(settings, context)


def collisions(settings):
    """How often two vectors at an angle share a bucket, in one round and in any of several.

    {"angles", "one": {n_buckets: [share]}, "any": {rounds: [share]}, "expected": {rounds:
    [share]}}: expected is 1 − (1 − p)^rounds of the measured p; for two buckets, p is 1 − angle /
    180° exactly ("exact").
    """
    d, pairs = settings["d"], settings["pairs"]
    generator = torch.Generator().manual_seed(settings["seed"])
    bucket_numbers, rounds = settings["n_buckets"], settings["rounds"]
    one, several = {str(b): [] for b in bucket_numbers}, {str(n): [] for n in rounds}
    for angle in settings["angles"]:
        x = torch.nn.functional.normalize(torch.randn(pairs, d, generator=generator), dim=-1)
        y = torch.randn(pairs, d, generator=generator)
        y = torch.nn.functional.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)  # at right angles to x
        y = math.cos(math.radians(angle)) * x + math.sin(math.radians(angle)) * y
        pair = torch.stack([x, y], 1)  # (pairs, 2, d): every pair is hashed with rotations of its own
        for n_buckets in bucket_numbers:
            n = max(rounds) if n_buckets == bucket_numbers[-1] else 1
            rotations = random_rotations(generator, n, d, n_buckets, pairs)  # (pairs, n, d, n_buckets / 2)
            buckets = hash_vectors(pair, rotations, n_buckets)  # (pairs, n, 2)
            same = (buckets[..., 0] == buckets[..., 1]).double()  # (pairs, n)
            one[str(n_buckets)].append(same.mean().item())
            for wanted in rounds if n > 1 else ():
                several[str(wanted)].append(same[:, :wanted].amax(-1).mean().item())
    return {
        "angles": settings["angles"], "one": one, "any": several,
        "expected": {str(n): [1 - (1 - p) ** n for p in one[str(bucket_numbers[-1])]] for n in rounds},
        "exact": [1 - angle / 180 for angle in settings["angles"]],
    }  # fmt: skip


def recall(settings, context):
    """The share of full attention's weight on keys that LSH attention shows, by rounds, in a
    trained model.

    {"bits", "mass": {rounds: share}, "pairs": {rounds: share of all causal pairs that are shown}}.
    """
    import torch

    model, config, windows, result = language.train(settings, context)
    weight, pairs = dict.fromkeys(settings["rounds"], 0.0), dict.fromkeys(settings["rounds"], 0.0)
    windows = windows[: settings["data"]["recall_windows"]]
    for window in windows:
        context.check_stop()
        layers = queries(model, window[None])
        for layer, q in enumerate(layers):
            generator = torch.Generator().manual_seed(layer)
            for rounds in weight:
                recalled_weight, visible_pairs = recalled(q, config, rounds, generator)
                weight[rounds] += recalled_weight / (len(layers) * len(windows))
                pairs[rounds] += visible_pairs / (len(layers) * len(windows))
    return {
        "bits": result["bits"], "mass": {str(n): x for n, x in weight.items()},
        "pairs": {str(n): x for n, x in pairs.items()},
    }  # fmt: skip


def queries(model, tokens):
    """The queries (1, heads, L, d_head) of every attention layer on tokens (1, L)."""
    queries_of_layers = []

    def keep(layer, inputs):
        q = layer.q(layer.norm(inputs[0]))  # (1, L, heads · d_head)
        queries_of_layers.append(q.unflatten(-1, (layer.config.n_heads, -1)).transpose(1, 2))

    hooks = [block.layers[0].register_forward_pre_hook(keep) for block in model.backbone.stack.blocks]
    try:
        with evaluating(model), torch.no_grad():
            model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return queries_of_layers


def recalled(q, config, rounds, generator):
    """(share of full attention's weight, share of the causal pairs) that so many rounds show; q (1, heads, L, d)."""
    length, n_buckets = q.shape[-2], n_buckets_for(config, q.shape[-2])
    rotations = random_rotations(generator, rounds, q.shape[-1], n_buckets, q.shape[1])
    options = replace(config.lsh, n_hashes=rounds)
    _, record = lsh_attention(q, q, hash_vectors(q, rotations, n_buckets), options, return_record=True)
    visible = record.dense() > 0  # (1, heads, L, L)
    before = torch.ones(length, length, dtype=torch.bool).tril(-1)
    scores = (options.scale_for(q.shape[-1]) * q) @ normalize_keys(q, options.norm_eps).transpose(-1, -2)
    weights = scores.masked_fill(~before, -torch.inf)[..., 1:, :].softmax(-1)  # the first token sees only itself
    visible = (visible & before)[..., 1:, :]
    return (weights * visible).sum(-1).mean().item(), (visible.sum() / (before.sum() * q.shape[1])).item()


def reconstruction(settings, context):
    """Errors of a reversible model by depth and number format, weights as initialised.

    {"depths", "inputs": {dtype: [relative error of the streams found again]}, "gradients": {dtype:
    [relative difference of the gradient from that of stored activations]}, "rounding": {dtype: unit
    roundoff}}.
    """
    import torch

    names, depths = settings["dtypes"], settings["depths"]
    result = {"depths": depths, "inputs": {n: [] for n in names}, "gradients": {n: [] for n in names}}
    for depth in depths:
        for name in names:
            context.check_stop()
            dtype = getattr(torch, name)
            result["inputs"][name].append(_inputs_again(settings, depth, dtype))
            result["gradients"][name].append(gradients_again(settings, depth, dtype))
    return {**result, "rounding": {name: torch.finfo(getattr(torch, name)).eps / 2 for name in names}}


def _model(settings, depth, dtype, pattern, reversible=True):
    config = config_of(
        settings["model"], n_layers=depth, pattern=pattern, lsh=settings["lsh"], max_length=settings["length"],
        reversible=reversible, seed=settings["seed"],
    )  # fmt: skip
    return ReformerLM(config).to(dtype)


def _tokens(settings):
    import torch

    generator = torch.Generator().manual_seed(settings["seed"])
    return torch.randint(256, (1, settings["length"]), generator=generator)


def _inputs_again(settings, depth, dtype):
    """Relative error of both streams; dense attention, since LSH would hash again from what was found."""
    model = _model(settings, depth, dtype, ("dense",)).eval()
    with torch.no_grad():
        x = model.backbone.embed(_tokens(settings))
        blocks = model.backbone.stack.blocks
        inputs = reversible_stack_inverse(*reversible_stack(x, x, blocks, None, None), blocks, None, None)
    return max((stream.double() - x.double()).norm().item() for stream in inputs) / x.double().norm().item()


def gradients_again(settings, depth, dtype):
    """Relative difference of the gradient of all weights, LSH attention, from one that stored its
    activations.
    """
    import torch

    grads = []
    for reversible in (True, False):
        model = _model(settings, depth, dtype, ("lsh",), reversible)
        model.loss(_tokens(settings), generator=torch.Generator().manual_seed(1)).backward()
        grads.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    return ((grads[0] - grads[1]).norm() / grads[1].norm()).item()


def summarise(config, results):
    """What the sub-runs found, as it is."""
    return dict(results)


def rows(record):
    """One row for each of the three."""
    lines = []
    if "collisions" in record:
        c = record["collisions"]
        at = c["angles"].index(30) if 30 in c["angles"] else len(c["angles"]) // 3
        rounds = list(c["any"])
        ours = f"at {c['angles'][at]}°: " + ", ".join(f"{100 * c['any'][n][at]:.1f} % in {n}" for n in rounds)
        claim = "Chance that two vectors share a bucket in any of several rounds"
        paper = "close vectors share a bucket with high probability, several rounds raise it (section 2)"
        lines.append(row(claim, paper, ours + " rounds"))
    if "recall" in record:
        r = record["recall"]
        ours = ", ".join(f"{100 * m:.1f} % in {n} ({100 * r['pairs'][n]:.1f} % of pairs)" for n, m in r["mass"].items())
        claim = f"Weight of full attention on keys that LSH attention shows, trained on text{on_given(record)}"
        paper = "a few keys hold most of the weight; more rounds miss less (section 2)"
        lines.append(row(claim, paper, ours + " rounds"))
    if "reconstruction" in record:
        e = record["reconstruction"]
        ours = "; ".join(f"{name} {values[-1]:.1e}" for name, values in e["gradients"].items())
        claim = f"Relative error of the gradient through {e['depths'][-1]} reversible layers"
        lines.append(row(claim, "none that matters (section 3)", ours))
    return lines
