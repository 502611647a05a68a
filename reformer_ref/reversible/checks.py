"""What any implementation of the reversible stack must satisfy, put to a function on NumPy arrays."""

import numpy as np

from reformer_ref.reversible import spec
from reformer_ref.testing import expect_close, expect_equal, in_a_sentence

# Layers per block: one block, several, and blocks of one or three layers, after which the streams
# change roles.
STACKS = ((2,), (2, 2), (2, 2, 2, 2), (1,), (3,), (3, 3), (2, 1, 3))
SHAPES = ((5, 4), (1, 3), (2, 7, 4))


class TanhLayer:
    """h(x) = tanh(x w + b), the layer that these checks build blocks from. ``w``: (d, d), ``b``:
    (d,).
    """

    def __init__(self, w, b):
        self.w, self.b = w, b

    def __call__(self, x):
        return np.tanh(x @ self.w + self.b)

    def vjp(self, x, d_out):
        """(d_x, {"w": d_w, "b": d_b}) for the cotangent ``d_out``."""
        d_sum = d_out * (1 - self(x) ** 2)
        rows, d_rows = x.reshape(-1, x.shape[-1]), d_sum.reshape(-1, x.shape[-1])
        return d_sum @ self.w.T, {"w": rows.T @ d_rows, "b": d_rows.sum(axis=0)}


IN_TURN = (
    "Layers change stream 1 and stream 2 in turn: y1 = x1 + F(x2), then y2 = x2 + G(y1), with the "
    "new y1."
)
REVERSE = (
    "Undo the layers in reverse order: x2 = y2 - G(y1), then x1 = y1 - F(x2), with the new x2."
)
TWO_GRADIENTS = (
    "Undo a layer before differentiating it, at its input and not at its output; the stream that "
    "the layer reads collects two gradients, one passed on unchanged and one through the layer."
)


@in_a_sentence
def check_reversible_stack(fn, seed=0, tolerance=1e-12):
    """``fn(x1, x2, blocks) -> (y1, y2)`` equals the spec; ``blocks``: tuples of `TanhLayer`."""
    errors = []
    for x1, x2, blocks in _cases(seed):
        got = fn(x1, x2, blocks)
        want = spec.reversible_stack(x1, x2, blocks)
        errors += _compare(("y1", "y2"), got, want, blocks, tolerance, IN_TURN)
    print(f"check_reversible_stack: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_reversible_inverse(fn, seed=0, tolerance=1e-12):
    """``fn(y1, y2, blocks) -> (x1, x2)`` gives back the inputs from the spec's outputs."""
    errors = []
    for x1, x2, blocks in _cases(seed):
        got = fn(*spec.reversible_stack(x1, x2, blocks), blocks)
        errors += _compare(("x1", "x2"), got, (x1, x2), blocks, tolerance, REVERSE)
    print(f"check_reversible_inverse: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_reversible_vjp(fn, seed=0, tolerance=1e-12):
    """``fn(y1, y2, blocks, d_y1, d_y2) -> (x1, x2, d_x1, d_x2, d_params)`` equals backpropagation.

    ``d_params``: one tuple per block, holding for each layer the dict {"w": ..., "b": ...}.
    """
    rng = np.random.default_rng(seed + 1)
    errors, cases = [], 0
    for x1, x2, blocks in _cases(seed):
        d_y1, d_y2 = rng.standard_normal((2, *x1.shape))
        y1, y2 = spec.reversible_stack(x1, x2, blocks)
        *got, got_params = fn(y1, y2, blocks, d_y1, d_y2)
        *want, want_params = _backpropagation(x1, x2, spec.flat(blocks), d_y1, d_y2)
        names = ["x1 (reconstructed)", "x2 (reconstructed)", "d_x1", "d_x2"]
        for k, (a, b) in enumerate(zip(spec.flat(got_params), want_params, strict=True)):
            names += [f"d_w of layer {k}", f"d_b of layer {k}"]
            got += [a["w"], a["b"]]
            want += [b["w"], b["b"]]
        errors += _compare(names, got, want, blocks, tolerance, TWO_GRADIENTS)
        cases += 1
    print(f"check_reversible_vjp: {cases} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_dropout_replay(fn, seed=0, tolerance=1e-12):
    """The backward pass uses the dropout mask of the forward pass, whatever random numbers the
    implementation draws.

    ``fn(x1, x2, weights, rate, d_y1, d_y2, seed) -> (y1, y2, d_x1, d_x2, d_weights)``: forward and
    backward of a stack whose layer k is h(x) = dropout(x weights[k]), weights (n_layers, d, d), kept
    entries divided by 1 - rate.

    No oracle is needed. With its masks held fixed the stack is linear in (x1, x2), so <d_y, y> =
    <d_x, x>; and each of the two layers of a single block is linear in its weight: <d_w, w> =
    <gradient of the changed stream, the change>.
    """
    rng = np.random.default_rng(seed)
    length, d, rate, worst = 32, 8, 0.4, 0.0
    for n_layers in (2, 3, 6):
        x1, x2, d_y1, d_y2 = rng.standard_normal((4, length, d))
        weights = rng.standard_normal((n_layers, d, d)) / np.sqrt(d)
        y1, y2, d_x1, d_x2, d_weights = fn(x1, x2, weights, rate, d_y1, d_y2, seed)
        other = fn(x1, x2, weights, rate, d_y1, d_y2, seed + 1)
        if np.array_equal(y1, other[0]):
            raise AssertionError(
                f"{n_layers} layers: two seeds gave the same y1. Dropout must be active."
            )
        again = fn(x1, x2, weights, rate, d_y1, d_y2, seed)
        for name, a, b in (("y1", again[0], y1), ("d_x2", again[3], d_x2)):
            expect_equal(
                f"{name}, called twice with seed {seed}",
                a,
                b,
                "The same seed must give the same masks.",
            )
        hint = "The recomputation in backward must see the dropout masks of forward: restore the random state."
        pairs = [("<d_y, y> against <d_x, x>", (d_y1, d_y2), (y1, y2), (d_x1, d_x2), (x1, x2))]
        if n_layers == 2:
            change, dropped = y1 - x1, np.mean(y1 == x1)
            if abs(dropped - rate) > 0.12:
                raise AssertionError(
                    f"dropout at rate {rate} left {dropped:.2f} of y1 - x1 at zero"
                )
            full = (x2 @ weights[0]) / (1 - rate)
            expect_close("y1 - x1 where it is kept", change, np.where(y1 == x1, 0, full), tolerance)
            pairs.append(("<d_w, w> of F", d_x1, change, d_weights[0], weights[0]))
            pairs.append(("<d_w, w> of G", d_y2, y2 - x2, d_weights[1], weights[1]))
        for name, d_a, a, d_b, b in pairs:
            size = np.linalg.norm(d_a) * np.linalg.norm(a)
            left, right = np.sum(np.multiply(d_a, a)) / size, np.sum(np.multiply(d_b, b)) / size
            if not abs(left - right) <= tolerance:
                raise AssertionError(
                    f"{name}, {n_layers} layers: {left:.6g} is not {right:.6g}. {hint}"
                )
            worst = max(worst, abs(left - right))
    print(f"check_dropout_replay: 3 stacks, gradients belong to the forward masks to {worst:.1e}")


@in_a_sentence
def check_bucket_replay(fn, seed=0, tolerance=1e-12):
    """Discrete choices made in forward are stored, not made again from reconstructed activations.

    ``fn(x1, x2, tables, d_y1, d_y2) -> (y1, y2, d_x1, d_x2, d_tables)``: forward and backward of a
    stack whose layer k is h(x)_i = x_i * tables[k, bucket(x_i)] with bucket(x_i) = argmax([x_i;
    -x_i]), the lowest index on a tie, and tables (n_layers, 2 d, d). The rows of x2 are exact ties,
    which the rounding of the reconstruction breaks.
    """
    rng = np.random.default_rng(seed)
    length, d, worst = 48, 4, 0.0
    for n_layers in (2, 3, 6):
        x1, x2, d_y1, d_y2 = rng.standard_normal((4, length, d))
        x2[:, :2] = 1.0 + np.abs(x2).max(axis=1, keepdims=True)  # entries 0 and 1 share the maximum
        tables = rng.standard_normal((n_layers, 2 * d, d))
        got = fn(x1, x2, tables, d_y1, d_y2)
        layers = [_BucketLayer(table) for table in tables]
        y1, y2 = spec.reversible_stack(x1, x2, [tuple(layers)])
        _, _, d_x1, d_x2, d_params = _backpropagation(x1, x2, layers, d_y1, d_y2)
        want = (y1, y2, d_x1, d_x2, np.stack([p["table"] for p in d_params]))
        hint = "Backward must use the buckets of forward; a reconstructed activation is not exact enough to hash again."
        for name, a, b in zip(("y1", "y2", "d_x1", "d_x2", "d_tables"), got, want, strict=True):
            worst = max(worst, expect_close(f"{name}, {n_layers} layers", a, b, tolerance, hint))
    print(f"check_bucket_replay: 3 stacks, worst relative error {worst:.1e}")


class _BucketLayer:
    """h(x)_i = x_i * table[bucket(x_i)], the bucket being a constant to the derivative."""

    def __init__(self, table):
        self.table = table

    def __call__(self, x):
        return x * self.table[self._buckets(x)]

    def vjp(self, x, d_out):
        buckets = self._buckets(x)
        d_table = np.zeros_like(self.table)
        np.add.at(d_table, buckets, d_out * x)
        return d_out * self.table[buckets], {"table": d_table}

    def _buckets(self, x):
        return np.argmax(np.concatenate([x, -x], axis=-1), axis=-1)


def _backpropagation(x1, x2, layers, d_y1, d_y2):
    """The oracle: forward with every layer's input stored, then the chain rule on what was stored."""
    streams, inputs = [x1, x2], []
    for k, layer in enumerate(layers):
        inputs.append(streams[1 - k % 2])
        streams[k % 2] = streams[k % 2] + layer(inputs[-1])
    d_streams, d_params = [d_y1, d_y2], []
    for k, layer in reversed(list(enumerate(layers))):
        d_x, d_layer = layer.vjp(inputs[k], d_streams[k % 2])
        d_streams[1 - k % 2] = d_streams[1 - k % 2] + d_x
        d_params.insert(0, d_layer)
    return x1, x2, *d_streams, d_params


def _cases(seed):
    """(x1, x2, blocks) for every stack of STACKS and shape of SHAPES."""
    rng = np.random.default_rng(seed)
    for sizes in STACKS:
        for shape in SHAPES:
            d = shape[-1]
            x1, x2 = rng.standard_normal((2, *shape))
            layers = [
                [TanhLayer(rng.standard_normal((d, d)), rng.standard_normal(d)) for _ in range(n)]
                for n in sizes
            ]
            yield x1, x2, [tuple(block) for block in layers]


def _compare(names, got, want, blocks, tolerance, hint):
    """The relative error of each result."""
    of = f"blocks of {' + '.join(str(len(block)) for block in blocks)} layers"
    results = zip(names, got, want, strict=True)
    return [expect_close(f"{name}, {of}", a, b, tolerance, hint) for name, a, b in results]
