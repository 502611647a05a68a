"""The checks of the components reject what they are there to reject.

Each fault that implementations of the Reformer are known for is written into the plain listing, as a change of one or
two of its lines; the check that must notice rejects it with a sentence that says where to look, and accepts the
listing without it.
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from reformer_ref.attention.spec import attend, attend_vjp, normalize_keys, normalize_keys_vjp
from reformer_ref.chunking import checks as chunking_checks
from reformer_ref.chunking import pytorch as chunking
from reformer_ref.local_attention import checks as local_checks
from reformer_ref.local_attention import pytorch as local
from reformer_ref.local_attention import spec as local_spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import checks, spec
from reformer_ref.lsh_attention import pytorch as lsh
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.testing import as_numpy, autograd_vjp, to_torch


def rejects(check, wrong, message, *args, **kwargs):
    """The check raises AssertionError, and says ``message`` (a regular expression)."""
    with pytest.raises(AssertionError, match=message):
        check(wrong, *args, **kwargs)


def patched(module, *changes):
    """The functions of a listing, each ``old`` in its source replaced by ``new``; every old occurs once."""
    source = inspect.getsource(module)
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    namespace = {"__name__": f"{module.__name__}_patched"}
    exec(compile(source, module.__file__, "exec"), namespace)
    return namespace


def on_arrays(*changes, dtype=torch.float64):
    return as_numpy(patched(lsh, *changes)["lsh_attention"], dtype)


def test_the_listing_passes():
    checks.check_lsh_attention(on_arrays())
    checks.check_lsh_attention(on_arrays(dtype=torch.float32), tolerance=1e-5)


LSH_FAULTS = {  # the line, what it becomes, and what the check must say
    "unstable sort": (
        "order = sort_by_bucket(buckets, real)",
        "order = length - 1 - sort_by_bucket(buckets.flip(-1), real.flip(-1))",
        "The sort is stable",
    ),
    "sort not undone": (
        "slot = undo_sort(order)",
        "slot = torch.arange(length).expand_as(order)",
        "Undo the sort|its own position",
    ),
    "one chunk too few": (
        "before, after = options.chunks_before,",
        "before, after = options.chunks_before - 1,",
        "chunks_before",
    ),
    "one chunk too many": (
        "before, after = options.chunks_before,",
        "before, after = options.chunks_before + 1,",
        "chunks_before",
    ),
    "rounds averaged": (
        "round_weights = lse.masked_fill(sees_nothing[..., None, :], 0.0).softmax(-2)",
        "round_weights = (lse > -torch.inf) / (lse > -torch.inf).sum(-2, keepdim=True).clamp(min=1)",
        "Rounds form one softmax.*log-sum-exp",
    ),
    "N_ij dropped": ("scores = scores - n_windows", "scores = scores - 0 * n_windows", "count_once: a key counts once"),
    "self not excluded": (
        "key_is_real[..., None, :] & (j != i)",
        "key_is_real[..., None, :] & (j == j)",
        "attends to itself only when",
    ),
    "keys not normalised": ("normalize_keys(qk, options.norm_eps)", "qk", "keys k̂ = q / √"),
    "padding is a key": (
        "real = padding_mask.expand(real.shape)",
        "pass",
        "Padding sorts behind all real tokens and is never a key",
    ),
}


@pytest.mark.parametrize("options", [None, LSHOptions(n_hashes=2, chunk_length=4)], ids=["all options", "paper"])
@pytest.mark.parametrize("fault", LSH_FAULTS)
def test_a_fault_is_named(fault, options):
    old, new, message = LSH_FAULTS[fault]
    rejects(checks.check_lsh_attention, on_arrays(old, new), message, options)


def test_causal_by_slots():
    """Within one bucket slots and positions have the same order; across buckets they do not."""
    by_slots = "(at(slot, keys)[..., None, :] <= at(slot, queries)[..., :, None])"
    wrong = on_arrays("visible = visible & (j <= i)", f"visible = visible & {by_slots}")
    trax = LSHOptions.preset("trax", n_hashes=2, chunk_length=4)
    rejects(checks.check_lsh_attention, wrong, "Compare original positions", trax)
    rejects(checks.check_lsh_attention, wrong, "Compare original positions")
    checks.check_lsh_attention(wrong, LSHOptions(n_hashes=2, chunk_length=4))


def test_self_by_a_penalty_in_float32():
    """−1e5 on self: exact in float64, but in float32 a token that sees only itself is wrong by up to a per cent."""
    by_lse = (
        "round_weights = lse.masked_fill(sees_nothing[..., None, :], 0.0).softmax(-2)",
        "round_weights = (lse - lse.masked_fill(sees_nothing[..., None, :], 0.0).logsumexp(-2, keepdim=True)).exp()",
    )
    penalty = (
        "visible = key_is_real[..., None, :] & (j != i)",
        "scores = scores - 1e5 * (j == i); visible = key_is_real[..., None, :].expand(scores.shape)",
    )
    checks.check_lsh_attention(on_arrays(*by_lse, dtype=torch.float32), tolerance=1e-5)
    wrong = on_arrays(*by_lse, *penalty, dtype=torch.float32)
    rejects(checks.check_lsh_attention, wrong, "attends to itself only when|see only each other", tolerance=1e-5)
    several_rounds = LSHOptions.preset("trax", n_hashes=4, chunk_length=4)
    rejects(checks.check_lsh_attention, wrong, "attends to itself only when", several_rounds, tolerance=1e-5)


@pytest.mark.parametrize(
    "field", [f for f in LSHOptions().to_dict() if f not in ("n_buckets", "n_hashes", "chunk_length")]
)
def test_no_option_may_be_ignored(field):
    def ignores(qk, v, buckets, options, padding_mask):
        default = "chunk" if field == "window" else getattr(LSHOptions(), field)
        return spec.lsh_attention(qk, v, buckets, replace(options, **{field: default}), padding_mask)

    rejects(checks.check_lsh_attention, ignores, field)


def test_sequences_may_not_share_buckets():
    """One bucket table for the whole batch, as when a cache holds one entry per module."""
    wrong = on_arrays("1. Sort by", "\n    buckets = buckets[(0,) * (qk.ndim - 2)].expand(buckets.shape)\n    #")
    rejects(checks.check_lsh_attention, wrong, "Leading axes are separate sequences")


# Gradients and records of LSH attention


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("normalize_keys(qk, options.norm_eps)", "normalize_keys(qk, options.norm_eps).detach()"),
        ("q = gather_rows(qk, queries)", "q = gather_rows(qk.detach(), queries)"),
        (
            "normalize_keys(qk, options.norm_eps)",
            "(qk * (normalize_keys(qk, options.norm_eps).norm(dim=-1) / qk.norm(dim=-1)).detach()[..., None])",
        ),
        ("weights.to(v.dtype) @", "weights.to(v.dtype).detach() @"),
        ("gather_rows(v, keys)", "gather_rows(v.detach(), keys)"),
    ],
    ids=[
        "none through keys",
        "none through queries",
        "length of the key constant",
        "weights constant",
        "values constant",
    ],
)
def test_gradients_of_the_listing(old, new):
    def gradients(module):
        def fn(qk, v, buckets, options, d_out, mask):
            attention = module["lsh_attention"]
            rest = to_torch(buckets), options, to_torch(mask)
            return autograd_vjp(lambda qk, v: attention(qk, v, *rest), (qk, v), d_out)[1]

        return fn

    checks.check_lsh_attention_vjp(gradients(patched(lsh)), LSHOptions(n_hashes=2, chunk_length=4))
    rejects(checks.check_lsh_attention_vjp, gradients(patched(lsh, old, new)), "two gradients")


@pytest.mark.parametrize("fault", [None, "counts forgotten", "softmax rule without its sum"])
def test_gradients_by_hand(fault):
    def lsh_attention_vjp(qk, v, buckets, o, d_out, padding_mask):
        counts = spec.visible_counts(buckets, o, padding_mask)
        counts = np.minimum(counts, 1) if fault == "counts forgotten" else counts
        keys, scale = normalize_keys(qk, o.norm_eps), o.scale_for(qk.shape[-1])
        d_q, d_k, d_v = attend_vjp(qk, keys, v, counts, d_out, scale)
        if fault == "softmax rule without its sum":
            _, weights = attend(qk, keys, v, counts, scale)
            d_q = scale * (weights * (d_out @ np.swapaxes(v, -1, -2))) @ keys
        return d_q + normalize_keys_vjp(qk, d_k, o.norm_eps), d_v

    if fault is None:
        checks.check_lsh_attention_vjp(lsh_attention_vjp)
    else:
        rejects(checks.check_lsh_attention_vjp, lsh_attention_vjp, "two gradients")


RECORD_FAULTS = {
    "right": (lambda dense, o: dense, None),
    "rounds not merged": (lambda dense, o: dense * o.n_hashes, "row sums of dense.*one softmax"),
    "transposed": (lambda dense, o: np.swapaxes(dense, -1, -2), "row sums of dense"),
    "uniform": (lambda dense, o: (dense > 0) / np.maximum((dense > 0).sum(-1, keepdims=True), 1), "dense · v"),
    "a trace of everything": (lambda dense, o: dense + 1e-15, "Who is seen"),
}


@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_records(fault):
    change, message = RECORD_FAULTS[fault]

    def record(qk, v, buckets, o, padding_mask):
        counts = spec.visible_counts(buckets, o, padding_mask)
        out, dense = attend(qk, normalize_keys(qk, o.norm_eps), v, counts, o.scale_for(qk.shape[-1]))
        return out, change(dense, o)

    if message is None:
        checks.check_attention_record(record)
    else:
        rejects(checks.check_attention_record, record, message)


# Chunking and local attention


def test_chunking():
    def faulty(name, *changes):
        return as_numpy(patched(chunking, *changes)[name])

    unstable = (
        "return torch.sort(buckets, dim=-1",
        "return buckets.shape[-1] - 1 - torch.sort(buckets.flip(-1), dim=-1",
    )
    rejects(chunking_checks.check_sort_by_bucket, faulty("sort_by_bucket", *unstable), "stable sort")
    not_inverted = ("    return torch.empty_like(slots).scatter_(-1, order.long(), slots)", "    return order")
    rejects(chunking_checks.check_undo_sort, faulty("undo_sort", *not_inverted), "the inverse")
    too_far = ("torch.roll(chunks, -offset, dims=-3)", "torch.roll(chunks, 1 - offset, dims=-3)")
    rejects(chunking_checks.check_look_adjacent, faulty("look_adjacent", *too_far), "look_adjacent")


LOCAL_FAULTS = {
    "one chunk too far": ("before, after = options.chunks_before,", "before, after = options.chunks_before + 1,"),
    "one chunk short": ("before, after = options.chunks_before,", "before, after = max(0, options.chunks_before - 1),"),
    "padding is a key": ("real = padding_mask.expand(real.shape)", "pass"),
    "wrap forgotten": ("options.wrap, fill=-1", "False, fill=-1"),
    "always wraps": ("options.wrap, fill=-1", "True, fill=-1"),
    "scale forgotten": ("options.scale_for(d)", "1.0"),
    "causality forgotten": ("if options.causal:", "if False:"),
    "self excluded": ("(*rows, visible,", "(*rows, visible & (keys[..., None, :] != queries[..., :, None]),"),
}


@pytest.mark.parametrize("fault", LOCAL_FAULTS)
def test_local_attention(fault):
    listing, faulty = patched(local)["local_attention"], patched(local, *LOCAL_FAULTS[fault])["local_attention"]
    message = "Padding moves behind" if "padding" in fault else "A query sees"

    def wrong_vjp(q, k, v, options, d_out, padding_mask):
        return autograd_vjp(lambda q, k, v: faulty(q, k, v, options, to_torch(padding_mask)), (q, k, v), d_out)[1]

    local_checks.check_local_attention(as_numpy(listing))
    rejects(local_checks.check_local_attention, as_numpy(faulty), message)
    rejects(local_checks.check_local_attention_vjp, wrong_vjp, "gradient")


def test_local_gradient_that_counts_a_key_once():
    """The gradient of a key that several windows show, taken from the last of them alone."""

    def wrong(q, k, v, options, d_out, padding_mask):
        d_q, _, d_v = local_spec.local_attention_vjp(q, k, v, options, d_out, padding_mask)
        last = d_out.copy()
        last[..., : -options.chunk_length, :] = 0
        return d_q, local_spec.local_attention_vjp(q, k, v, options, last, padding_mask)[1], d_v

    rejects(local_checks.check_local_attention_vjp, wrong, "the sum over all windows")
    rejects(local_checks.check_local_attention_vjp, wrong, "the sum over all windows", LocalOptions(chunk_length=3))
