"""Each check rejects the implementations it is there to reject (NumPy variants), and accepts the
right one.
"""

import numpy as np
import pytest
from reformer_ref.reversible import checks, spec


def flat(blocks):
    return [layer for block in blocks for layer in block]


# -- forward and inverse
# ---------------------------------------------------------------------------------------------


def both_from_old(x1, x2, blocks):
    """G reads x1 instead of the new y1."""
    for k, layer in enumerate(flat(blocks)):
        if k % 2 == 0:
            old, x1 = x1, x1 + layer(x2)
        else:
            x2 = x2 + layer(old)
    return x1, x2


def streams_swapped(x1, x2, blocks):
    return spec.reversible_stack(x1, x2, blocks)[::-1]


def no_residual(x1, x2, blocks):
    for k, layer in enumerate(flat(blocks)):
        x1, x2 = (layer(x2), x2) if k % 2 == 0 else (x1, layer(x1))
    return x1, x2


def turns_restart_per_block(x1, x2, blocks):
    """A block of three halves does not hand the turn over."""
    for block in blocks:
        x1, x2 = spec.reversible_stack(x1, x2, [block])
    return x1, x2


@pytest.mark.parametrize("fn", [both_from_old, streams_swapped, no_residual, turns_restart_per_block])
def test_wrong_forward(fn):
    with pytest.raises(AssertionError, match="in turn"):
        checks.check_reversible_stack(fn)


def undone_in_forward_order(y1, y2, blocks):
    for k, layer in enumerate(flat(blocks)):
        y1, y2 = (y1 - layer(y2), y2) if k % 2 == 0 else (y1, y2 - layer(y1))
    return y1, y2


@pytest.mark.parametrize("fn", [undone_in_forward_order, spec.reversible_stack, lambda y1, y2, blocks: (y1, y2)])
def test_wrong_inverse(fn):
    with pytest.raises(AssertionError, match="reverse order"):
        checks.check_reversible_inverse(fn)


# -- backward
# --------------------------------------------------------------------------------------------------------


def make_vjp(differentiate_at="input", paths="all"):
    """`spec.reversible_stack_vjp` with one thing left out."""

    def vjp(y1, y2, blocks, d_y1, d_y2):
        streams, d_streams, d_params = [y1, y2], [d_y1, d_y2], []
        for k, layer in reversed(list(enumerate(flat(blocks)))):
            target, source = k % 2, 1 - k % 2
            x = streams[source] if differentiate_at == "input" else (y1, y2)[source]
            streams[target] = streams[target] - layer(streams[source])
            d_x, d_layer = layer.vjp(x, d_streams[target])
            d_params.insert(0, d_layer)
            if paths == "residual only" or (paths == "without F" and target == 0):
                continue
            d_streams[source] = d_x if paths == "layer only" else d_streams[source] + d_x
        remaining = iter(d_params)
        return *streams, *d_streams, [tuple(next(remaining) for _ in block) for block in blocks]

    return vjp


def test_the_variants_differ_only_in_what_is_left_out():
    checks.check_reversible_vjp(make_vjp())


@pytest.mark.parametrize(
    "fn",
    [
        make_vjp(differentiate_at="output"),  # nothing reconstructed
        make_vjp(paths="without F"),  # the gradient of x2 misses F'(x2)^T d_y1
        make_vjp(paths="residual only"),
        make_vjp(paths="layer only"),
    ],
)
def test_wrong_backward(fn):
    with pytest.raises(AssertionError, match="collects two gradients"):
        checks.check_reversible_vjp(fn)


# -- replay
# ----------------------------------------------------------------------------------------------------------


class Drop:
    """Dropout after x w. ``replay``: keep the mask of the first call, as an implementation must."""

    def __init__(self, w, rate, rng, replay):
        self.w, self.rate, self.rng, self.replay, self.mask = w, rate, rng, replay, None

    def draw(self, x):
        if self.mask is None or not self.replay:
            self.mask = (self.rng.random((*x.shape[:-1], self.w.shape[1])) >= self.rate) / (1 - self.rate)
        return self.mask

    def __call__(self, x):
        return (x @ self.w) * self.draw(x)

    def vjp(self, x, d_out):
        d = d_out * self.draw(x)
        return d @ self.w.T, {"w": x.T @ d}


class MaskedOnce(Drop):
    """Subtracts with the mask of forward but differentiates with a fresh one."""

    def vjp(self, x, d_out):
        mask, self.mask = self.mask, None
        result = super().vjp(x, d_out)
        self.mask = mask
        return result


class NoDrop(Drop):
    def draw(self, x):
        return 1.0


def dropout_stack(layer_type=Drop, replay=True):
    def fn(x1, x2, weights, rate, d_y1, d_y2, seed):
        rng = np.random.default_rng(seed)
        blocks = [tuple(layer_type(w, rate, rng, replay) for w in weights)]
        y1, y2 = spec.reversible_stack(x1, x2, blocks)
        _, _, d_x1, d_x2, [d_params] = spec.reversible_stack_vjp(y1, y2, blocks, d_y1, d_y2)
        return y1, y2, d_x1, d_x2, np.stack([d["w"] for d in d_params])

    return fn


def test_dropout_replayed():
    checks.check_dropout_replay(dropout_stack())


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (dropout_stack(replay=False), "restore the random state"),
        (dropout_stack(MaskedOnce), "restore the random state"),
        (dropout_stack(NoDrop), "Dropout must be active"),
        (lambda *args: dropout_stack()(*args[:-1], None), "The same seed must give the same masks"),
    ],
)
def test_dropout_not_replayed(fn, message):
    with pytest.raises(AssertionError, match=message):
        checks.check_dropout_replay(fn)


class Bucket:
    """x times the row of ``table`` that its bucket selects; ``store``: the buckets of forward are
    kept.
    """

    def __init__(self, table, store):
        self.table, self.store, self.kept = table, store, None

    def buckets(self, x):
        if self.kept is None or not self.store:
            self.kept = np.argmax(np.concatenate([x, -x], axis=-1), axis=-1)
        return self.kept

    def __call__(self, x):
        return x * self.table[self.buckets(x)]

    def vjp(self, x, d_out):
        d_table = np.zeros_like(self.table)
        np.add.at(d_table, self.buckets(x), d_out * x)
        return d_out * self.table[self.buckets(x)], {"table": d_table}


def bucket_stack(store):
    def fn(x1, x2, tables, d_y1, d_y2):
        blocks = [tuple(Bucket(table, store) for table in tables)]
        y1, y2 = spec.reversible_stack(x1, x2, blocks)
        _, _, d_x1, d_x2, [d_params] = spec.reversible_stack_vjp(y1, y2, blocks, d_y1, d_y2)
        return y1, y2, d_x1, d_x2, np.stack([d["table"] for d in d_params])

    return fn


def test_buckets_stored():
    checks.check_bucket_replay(bucket_stack(store=True))


@pytest.mark.parametrize("seed", range(3))
def test_hashed_again_in_backward(seed):
    with pytest.raises(AssertionError, match="not exact enough to hash again"):
        checks.check_bucket_replay(bucket_stack(store=False), seed)
