"""A5, memory and the crossover: definitions, how the student's functions are called, what they must satisfy.

``study`` gives what the package counts at the sizes of a variant, and the recorded speeds of LSH and dense attention.
"""

import json

import numpy as np

from reformer_lab.classroom import cases
from reformer_lab.classroom.exercise import Exercise, by_name
from reformer_lab.classroom.exercises.memory_texts import DESCRIBE as DESCRIBE
from reformer_lab.plots.drawing import number
from reformer_lab.plots.measured import medians

DEEPER = ", two layers more"
HEADS, CHUNK, VOCAB = 4, 64, 256  # of the model that is studied; all else is the variant's
ASKED = 1000  # how often each cost function may be asked


def study(variant):
    """What the package counts at the sizes of ``variant``, and the record of measured speeds: plain data.

    attention: {"dense" | "LSH": {tensor: bytes}}, alive at the peak of one forward pass; step: {"ordinary" |
    "reversible": {part: bytes}} at the peak of forward and backward; over_time: {way: live bytes}; record: as in
    ``reformer_lab/records/bench_crossover.json``.
    """
    ((_, (text,)),) = cases.visible("A5.study", variant)
    return json.loads(str(text))


def print_counts(predicted, counted, unit):
    """Prediction and count, one below the other, by part, in bytes and in a unit, (name, bytes).

    predicted, counted: {name: {part: bytes}}; counted may hold more names, which are passed over.
    """
    for name, sizes in predicted.items():
        sums = {"predicted": sum(sizes.values()), "counted": sum(counted[name].values())}
        totals = ", ".join(f"{how} {size / 1e6:,.1f} MB" for how, size in sums.items())
        print(f"{name}: {totals}, counted / predicted = {number(sums['counted'] / sums['predicted'])}")
        for how, rows in {"predicted": sizes, "counted": counted[name]}.items():
            for label, size in rows.items():
                if size:
                    print(f"    {how:9}  {label:28} {size:>17,} bytes = {size / unit[1]:7.3f} × {unit[0]}")
        print()


def step_sizes(variant, way):
    """The arguments of ``step_bytes`` for one of the ways of ``study(variant)["step"]``."""
    depth = variant.n_layers + 2 * way.endswith(DEEPER)
    d_model = variant.d_model
    return variant.length, depth, d_model, 4 * d_model, VOCAB, way.startswith("reversible")


def model_crossover(operations, crossover, n_hashes):
    """The student's crossover of the student's operations, at the sizes of the record: 64 per head, chunks of 64."""

    def costs(length):
        return operations(length, 64, n_hashes, 64, 1)

    return crossover(lambda n: costs(n)[0], lambda n: costs(n)[1], 64, 1 << 20)


def measured_crossover(record, n_hashes, margin):
    """Where LSH was ``margin`` times as fast as dense attention, on a straight line in logarithms; in words."""
    medians_by_name = medians([record], n_hashes=n_hashes)
    lengths, lead = medians_by_name["dense"][0], medians_by_name["dense"][1] / medians_by_name["ours-trax"][1] / margin
    at = int(np.argmax(lead > 1))
    if at == 0:
        return f"{lengths[0]:,} or less (no shorter length was measured)"
    x, y = np.log(lengths[at - 1 : at + 1]), np.log(lead[at - 1 : at + 1])
    length = round(float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0]))))
    return f"about {length:,} (on a line between {lengths[at - 1]:,} and {lengths[at]:,})"


def cost_functions(square, lsh_square, line, level):
    """dense(L) = square·L², and lsh(L) = lsh_square·L² + line·L + level·L·⌈log₂ L⌉; each may be asked ASKED times."""

    def limited(cost):
        asked = 0

        def ask(length):
            nonlocal asked
            asked += 1
            if asked > ASKED:
                raise AssertionError(f"a cost function may be asked {ASKED:,} times, yours asks more often: bisect")
            return cost(int(length))

        return ask

    def lsh(n):
        return lsh_square * n * n + line * n + level * n * (n - 1).bit_length()

    return limited(lambda n: square * n * n), limited(lsh)


def _find(fn, args):
    *costs, chunk_length, longest = args
    return fn(*cost_functions(*costs), chunk_length, longest)


def _same(got, want, sentence):
    got, want = (tuple(x) if isinstance(x, list) else x for x in (got, want))  # students may return either
    if got != want:
        raise AssertionError(f"{sentence}: {got} and {want}")


def _peak_holds(fn, variant, rng):
    storage = rng.permutation(40)
    n_bytes = rng.integers(1, 9999, 40)
    born = rng.permutation(np.arange(1, 41))
    died = np.where(rng.random(40) < 0.3, -1, born + rng.integers(1, 20, 40))
    peak, moment, mixed = *fn(storage, n_bytes, born, died), rng.permutation(40)
    _same(fn(*(x[mixed] for x in (storage, n_bytes, born, died))), (peak, moment), "the order of the rows is no matter")
    later = np.where(died < 0, -1, died + 7)
    _same(fn(storage, n_bytes, born + 7, later), (peak, moment + 7), "7 moments later everything is 7 moments later")
    _same(fn(storage, n_bytes + variant.block_bytes * 3, born, born + 1)[0] % variant.block_bytes, 0, "whole blocks")


def _scores_hold(fn, variant, rng):
    length, chunk = (int(n) for n in rng.integers(50, 3000, 2))
    single, two = fn(length, 1, 3, chunk), fn(length, 2, 3, chunk)
    _same(two[:2], (2 * single[0], 2 * single[1]), "two heads hold twice the scores of one")
    _same(
        fn(length, 1, 6, chunk),
        (single[0], 2 * single[1], single[2]),
        "twice the rounds double the chunked scores, not a block",
    )


def _step_holds(fn, variant, rng):
    length, d, d_ff = (int(n) for n in rng.integers(8, 500, 3))
    shallow, deep, deeper = (fn(length, n, d, d_ff, 100, True) for n in (1, 5, 9))
    _same(shallow[1:], deep[1:], "depth costs a reversible stack nothing but weights")
    _same(deeper[0] - deep[0], deep[0] - shallow[0], "every layer has as many weights as the others")
    _same(fn(length, 6, d, d_ff, 100, False)[1], 6 * fn(length, 1, d, d_ff, 100, False)[1], "six layers keep six times")


def _operations_hold(fn, variant, rng):
    length, d = (int(n) for n in rng.integers(20, 3000, 2))
    single, four = fn(length, d, 1, 32, 1), fn(length, d, 4, 32, 1)
    _same(four, (single[0], 4 * single[1]), "four rounds cost four times one, and dense attention has none")
    more = [fn(length, d, 1, 32, n)[1] for n in (1, 2, 3)]
    _same(more[2] - more[1], more[1] - more[0], "every chunk looked at costs the same")


def _crossover_holds(fn, variant, rng):
    square, line = int(rng.integers(3, 50)), int(rng.integers(10_000, 99_999))
    length = _find(fn, (square, 0, line, 0, 8, 10**9))
    _same(
        _find(fn, (10 * square, 0, 10 * line, 0, 8, 10**9)), length, "costs ten times as high give the same crossover"
    )
    _same(_find(fn, (square, 0, line, 0, 8, length - 1)), 0, "none is found that is longer than `longest`")


SIZES = ("length", "n_layers", "d_model", "d_ff", "vocab_size", "reversible")
COSTS = ("square", "lsh_square", "line", "level", "chunk_length", "longest")
LAYOUT = ("length", "n_heads", "n_hashes", "chunk_length")
PRICED = ("length", "d_head", "n_hashes", "chunk_length", "n_look")
EXERCISES = by_name(
    Exercise("A5.peak", ("storage", "n_bytes", "born", "died"), ("peak", "moment"), identities=_peak_holds),
    Exercise("A5.scores", LAYOUT, ("dense", "chunked", "streamed"), identities=_scores_hold),
    Exercise("A5.step", SIZES, ("weights", "kept", "work"), identities=_step_holds),
    Exercise("A5.operations", PRICED, ("dense", "lsh"), identities=_operations_hold),
    Exercise("A5.crossover", COSTS, call=_find, identities=_crossover_holds),
    Exercise("A5.study", (), graded=False),
)
