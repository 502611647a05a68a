"""All versions of dense attention pass the checks, also block by block; wrong variants fail them."""

from functools import partial

import numpy as np
import pytest
import torch
from reformer_ref.attention import checks, pytorch, spec, streaming
from reformer_ref.testing import as_numpy, autograd_vjp

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
DIFFERENTIABLE = ("normalize_keys", "attend", "regular_attention", "shared_qk_attention")
DISCRETE = ("self_as_last_resort", "visible_pairs")


def on_tensors(mask, device):
    return mask if mask is None else torch.from_numpy(np.ascontiguousarray(mask)).to(device)


def autograd_versions(device="cpu", block_size=None):
    """The gradients of pytorch.py by autograd, with the arguments of the hand-written ones in
    spec.py.
    """

    def normalize_keys(x, d_out, norm_eps):
        return autograd_vjp(lambda x: pytorch.normalize_keys(x, norm_eps), [x], d_out, device=device)[1][0]

    def attend(q, k, v, counts, d_out, scale):
        counts = on_tensors(counts, device)
        return autograd_vjp(lambda *a: pytorch.attend(*a, counts, scale)[0], [q, k, v], d_out, device=device)[1]

    def regular_attention(q, k, v, d_out, causal, mask, scale):
        options = {"causal": causal, "padding_mask": on_tensors(mask, device), "scale": scale, "block_size": block_size}
        return autograd_vjp(partial(streaming.regular_attention, **options), [q, k, v], d_out, device=device)[1]

    def shared_qk_attention(qk, v, d_out, causal, mask, scale, norm_eps):
        options = {"causal": causal, "padding_mask": on_tensors(mask, device), "scale": scale, "norm_eps": norm_eps}
        fn = partial(streaming.shared_qk_attention, **options, block_size=block_size)
        return autograd_vjp(fn, [qk, v], d_out, device=device)[1]

    return {fn.__name__: fn for fn in (normalize_keys, attend, regular_attention, shared_qk_attention)}


def test_spec_passes_the_checks():
    for name in DIFFERENTIABLE + DISCRETE:
        getattr(checks, f"check_{name}")(getattr(spec, name))
    for name in DIFFERENTIABLE:
        getattr(checks, f"check_{name}_vjp")(getattr(spec, f"{name}_vjp"))


@pytest.mark.parametrize("device", DEVICES)
def test_pytorch_passes_the_checks(device):
    for name in DIFFERENTIABLE:
        getattr(checks, f"check_{name}")(as_numpy(getattr(pytorch, name), device=device))
        getattr(checks, f"check_{name}_vjp")(autograd_versions(device)[name])
    checks.check_self_as_last_resort(as_numpy(pytorch.self_as_last_resort, device=device))
    checks.check_visible_pairs(as_numpy(pytorch.visible_pairs, device=device))


@pytest.mark.parametrize("block_size", [1, 3, 99])
@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_block_by_block(name, block_size):
    """Single queries, blocks that do not divide L, and all of it."""
    getattr(checks, f"check_{name}")(as_numpy(partial(getattr(streaming, name), block_size=block_size)))
    getattr(checks, f"check_{name}_vjp")(autograd_versions(block_size=block_size)[name])


# Wrong variants


def softmax_rows(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def shared_with(
    counts_of=None, keys_of=spec.normalize_keys, self_rule=spec.self_as_last_resort, scale_of=spec.scale_for
):
    """Shared-QK attention with one part exchanged."""

    def shared(qk, v, causal, mask, scale, norm_eps):
        length = qk.shape[-2]
        counts = (counts_of or spec.visible_pairs)(length, length, causal, mask)
        return spec.attend(qk, keys_of(qk, norm_eps), v, self_rule(counts), scale_of(scale, qk.shape[-1]))[0]

    return shared


def look_ahead(length, key_length, causal, mask):
    """Causal off by one: a query sees the next key too."""
    counts = spec.visible_pairs(length, key_length, False, mask)
    return np.tril(counts, 1) if causal else counts


def without_self(counts):
    return np.where(np.eye(counts.shape[-1], dtype=bool), 0, counts)


def masks_queries(length, key_length, causal, mask):
    counts = spec.visible_pairs(length, key_length, causal)
    return counts if mask is None or length != key_length else counts * mask[..., :, None]


def regular_with(counts_of=spec.visible_pairs, scale_of=spec.scale_for):
    def regular(q, k, v, causal, mask, scale):
        counts = counts_of(q.shape[-2], k.shape[-2], causal, mask)
        return spec.attend(q, k, v, counts, scale_of(scale, q.shape[-1]))[0]

    return regular


def each_block_starts_anew(q, k, v, causal, mask, scale, block=3):
    """The causal triangle is laid out from the first row of the block, not of the sequence."""
    length = q.shape[-2]
    counts = spec.visible_pairs(length, k.shape[-2], causal, mask)
    rows = [counts[..., : min(block, length - s), :] for s in range(0, length, block)]
    return spec.attend(q, k, v, np.concatenate(rows, -2), spec.scale_for(scale, q.shape[-1]))[0]


def drops_the_last_block(q, k, v, causal, mask, scale, block=3):
    out = spec.regular_attention(q, k, v, causal, mask, scale)
    out[..., q.shape[-2] - q.shape[-2] % block :, :] = 0
    return out


def averages_when_nothing_is_visible(q, k, v, counts, scale):
    """A large penalty in place of −∞: a query that sees nothing attends to everything."""
    weights = softmax_rows(
        np.where(counts > 0, scale * (q @ np.swapaxes(k, -1, -2)) + np.log(np.maximum(counts, 1)), -1e9)
    )
    return weights @ v, weights


def overflows(q, k, v, counts, scale):
    weights = counts * np.exp(scale * (q @ np.swapaxes(k, -1, -2)))
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return weights @ v, weights


def only_as_query(qk, v, d_out, causal, mask, scale, norm_eps):
    """The gradient that the key receives is forgotten."""
    counts = spec.self_as_last_resort(spec.visible_pairs(qk.shape[-2], qk.shape[-2], causal, mask))
    k = spec.normalize_keys(qk, norm_eps)
    d_q, _, d_v = spec.attend_vjp(qk, k, v, counts, d_out, spec.scale_for(scale, qk.shape[-1]))
    return d_q, d_v


def sees_itself_in_backward(qk, v, d_out, causal, mask, scale, norm_eps):
    counts, k = (spec.visible_pairs(qk.shape[-2], qk.shape[-2], causal, mask), spec.normalize_keys(qk, norm_eps))
    d_q, d_k, d_v = spec.attend_vjp(qk, k, v, counts, d_out, spec.scale_for(scale, qk.shape[-1]))
    return d_q + spec.normalize_keys_vjp(qk, d_k, norm_eps), d_v


WRONG = {
    "eps without d": ("normalize_keys", lambda x, e: spec.normalize_keys(x, e / x.shape[-1])),
    "eps outside the root": ("normalize_keys", lambda x, e: x / (np.linalg.norm(x, axis=-1, keepdims=True) + e)),
    "zero becomes NaN": ("normalize_keys", lambda x, e: x / np.sqrt((x * x).sum(-1, keepdims=True) + x.shape[-1] * e)),
    "length held fixed": ("normalize_keys_vjp", lambda x, d, e: d * spec._inverse_length(x, e)),
    "counts as booleans": ("attend", lambda q, k, v, c, s: spec.attend(q, k, v, c > 0, s)),
    "average when nothing is visible": ("attend", averages_when_nothing_is_visible),
    "overflow": ("attend", overflows),
    "softmax over all": ("attend", lambda q, k, v, c, s: spec.attend(q, k, v, np.ones_like(c), s)),
    "weights held fixed": ("attend_vjp", lambda *a: (0 * a[0], 0 * a[1], spec.attend_vjp(*a)[2])),
    "scale forgotten": ("attend_vjp", lambda *a: (a[5] * spec.attend_vjp(*a)[0], *spec.attend_vjp(*a)[1:])),
    "one gradient short": ("attend_vjp", lambda *a: spec.attend_vjp(*a)[:2]),
    "self always seen": ("self_as_last_resort", lambda c: c),
    "self never seen": ("self_as_last_resort", without_self),
    "self seen by the first": (
        "self_as_last_resort",
        lambda c: without_self(c) + c * (np.arange(c.shape[-1]) == 0) * np.eye(c.shape[-1], dtype=int),
    ),
    "looks one ahead": ("visible_pairs", look_ahead),
    "never itself": ("visible_pairs", lambda n, m, c, p: np.tril(spec.visible_pairs(n, m, False, p), -1 if c else m)),
    "masks queries": ("visible_pairs", masks_queries),
    "ignores the mask": ("regular_attention", regular_with(lambda n, m, c, p: spec.visible_pairs(n, m, c))),
    "causal off by one": ("regular_attention", regular_with(look_ahead)),
    "no 1/√d": ("regular_attention", regular_with(scale_of=lambda scale, d: 1.0 if scale is None else scale)),
    "1/d": ("regular_attention", regular_with(scale_of=lambda scale, d: 1 / d if scale is None else scale)),
    "triangle of the block": ("regular_attention", each_block_starts_anew),
    "last block dropped": ("regular_attention", drops_the_last_block),
    "mask ignored in backward": (
        "regular_attention_vjp",
        lambda q, k, v, d, c, m, s: spec.regular_attention_vjp(q, k, v, d, c, None, s),
    ),
    "not causal in backward": (
        "regular_attention_vjp",
        lambda q, k, v, d, c, m, s: spec.regular_attention_vjp(q, k, v, d, False, m, s),
    ),
    "self not excluded": ("shared_qk_attention", shared_with(self_rule=lambda counts: counts)),
    "self always excluded": ("shared_qk_attention", shared_with(self_rule=without_self)),
    "keys not normalised": ("shared_qk_attention", shared_with(keys_of=lambda x, norm_eps: x)),
    "eps ignored": ("shared_qk_attention", shared_with(keys_of=lambda x, norm_eps: spec.normalize_keys(x))),
    "shared, causal off by one": ("shared_qk_attention", shared_with(look_ahead)),
    "shared, masks queries": ("shared_qk_attention", shared_with(masks_queries)),
    "always 1/√d": ("shared_qk_attention", shared_with(scale_of=lambda scale, d: (scale or 1.0) * d**-0.5)),
    "key's gradient forgotten": ("shared_qk_attention_vjp", only_as_query),
    "self seen in backward": ("shared_qk_attention_vjp", sees_itself_in_backward),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_checks_refuse(wrong):
    name, fn = WRONG[wrong]
    with pytest.raises(AssertionError, match="expected"), np.errstate(all="ignore"):
        getattr(checks, f"check_{name}")(fn)


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *DISCRETE])
def test_the_checks_say_what_they_did(name, capsys):
    getattr(checks, f"check_{name}")(getattr(spec, name), seed=7)
    line = capsys.readouterr().out
    assert line.startswith(f"check_{name}: ")
    assert line.count("\n") == 1
