"""A2, sort, chunk, look back, undo: exercises and definitions."""

import numpy as np

from reformer_lab.classroom.exercise import Exercise, by_name, holds


def sees_later(variant):
    """Whether queries see later positions instead of earlier ones: the side that the window covers."""
    return (variant.look == "back") != (variant.sort_ties == "earliest_first")


def _describe_sort(variant):
    first, sign = ("earlier", "<") if variant.sort_ties == "earliest_first" else ("**later** (higher)", ">")
    return rf"""### Definition: sorted order
Token $i$ has the bucket $b_i$. Lower buckets come first; within a bucket the {first} position comes first. So token
$i$ gets a *slot* $s_i$, counted from 0:

$$s_i < s_j \quad \text{{if}} \quad b_i < b_j \;\text{{ or }}\; (b_i = b_j \text{{ and }} i {sign} j)$$

The array `order` lists the token in each slot: `order[s]` is the position $i$ with $s_i = s$."""


def _describe_chunk(variant):
    place, where = "s_i", "**after the last token**, at the end of the last chunk"
    if variant.pad == "start":
        place, where = "(s_i + f)", "**before the first token**, at the start of the first chunk"
    return rf"""### Definition: chunks
The sorted order of $L$ tokens is cut into $n = \lceil L / m \rceil$ chunks of $m$ places (`chunk_length`). If $m$ does
not divide $L$, then $f = n m - L$ places are free. They come {where}, and hold $-1$ (padding).
Token $i$ is in chunk

$$c_i = \lfloor {place} / m \rfloor .$$

All chunks have the same shape, wherever a bucket happens to end."""


def _describe_look(variant):
    sign, side = ("-", "before") if variant.look == "back" else ("+", "after")
    seen = ["c", *(f"c {sign} {step}" for step in range(1, variant.n_look + 1))]
    order = "the chunk itself first, then its neighbours from near to far"
    if variant.look_order == "by_place":
        seen = seen[::-1] if variant.look == "back" else seen
        order = "in the order of the sequence"
    row = r",\; ".join(rf"\text{{chunk}}({c})" for c in seen)
    chunks = "chunk" if variant.n_look == 1 else f"{variant.n_look} chunks"
    return rf"""### Definition: window
A chunk $c$ looks at itself and at the {chunks} {side} it. Its *window* lists all their places, {order}:

$$\text{{window}}(c) = [\, {row} \,]$$

Within each chunk the places keep their order, so a window has {variant.n_look + 1} $\cdot\; m$ places. A chunk
before the first or after the last does not exist and counts as $m$ places that hold $-1$: no ring."""


def _describe_visible(variant):
    sign, words = (r"\ge", "earlier") if sees_later(variant) else (r"\le", "later")
    return rf"""### Definition: visible
The query at position $i$ *may* attend to the key at position $j$ of its window if

1. neither place is padding ($-1$),
2. both have the same bucket, $b_j = b_i$,
3. $j {sign} i$: the key is not {words} than the query, in **original positions**.

By this rule every token may attend to itself. It does so **only if it may attend to no other key**; otherwise the
place with $j = i$ is masked. (Its own place is always in its window.)"""


DESCRIBE = {
    "A2.sort": _describe_sort, "A2.chunk": _describe_chunk, "A2.look": _describe_look, "A2.visible": _describe_visible,
}  # fmt: skip


def _sort_identities(fn, variant, rng):
    buckets = rng.integers(0, 6, (3, 41))
    order = np.asarray(fn(buckets))
    holds((np.sort(order) == np.arange(41)).all(), "Every position must occur once per round.")
    holds((np.diff(np.take_along_axis(buckets, order, -1)) >= 0).all(), "Buckets must not decrease along the order.")
    holds(np.array_equal(fn(7**buckets), order), "Bucket numbers that compare alike must give the same order.")


def _chunk_identities(fn, variant, rng):
    for length, chunk_length in ((1, 1), (23, 5), (24, 6), (5, 24)):
        order = rng.permutation(length)
        flat = np.asarray(fn(order, chunk_length)).ravel()
        holds(np.array_equal(flat[flat >= 0], order), "The chunks, without −1, must give the order.")
        holds(flat.size - length < chunk_length, "No chunk may be empty.")


def _look_identities(fn, variant, rng):
    chunks = rng.permutation(24).reshape(6, 4)
    names = rng.permutation(24)
    windows = np.asarray(fn(chunks))
    holds(len(windows) == 6, "There must be one window per chunk.")
    holds(all(set(c) <= set(w) for c, w in zip(chunks, windows, strict=True)), "A window must contain its own chunk.")
    holds(
        np.array_equal(fn(names[chunks]), np.where(windows < 0, -1, names[windows])),
        "Renaming the positions must change nothing else.",
    )


def _visible_identities(fn, variant, rng):
    buckets = rng.integers(0, 5, 21)
    names = rng.permutation(5)
    chunks = np.append(rng.permutation(21), [-1] * 3).reshape(4, 6)
    windows = np.concatenate([chunks[::-1], chunks], axis=1)
    seen = np.asarray(fn(buckets, chunks, windows))
    holds(np.array_equal(seen.any(axis=-1), chunks >= 0), "Padding alone must see nothing.")
    holds(np.array_equal(fn(names[buckets], chunks, windows), seen), "Renaming the buckets must change nothing.")
    holds(
        np.array_equal(fn(buckets, chunks, windows[:, ::-1]), seen[..., ::-1]),
        "Reversed windows must give the reversed result.",
    )


def _undo_identities(fn, variant, rng):
    v = rng.standard_normal((22, 3))
    flat = np.full(25, -1)
    flat[np.sort(rng.permutation(25)[:22])] = rng.permutation(22)
    chunks = flat.reshape(5, 5)
    holds(np.array_equal(fn(v[chunks], chunks), v), "Sorting and undoing the sort must change nothing.")
    holds(np.asarray(fn(v.astype("f4")[chunks], chunks)).dtype == "f4", "The result must have the dtype of the rows.")


def _name_pair(args, at):
    buckets, chunks, windows = args

    def name(i):
        return f"{i} of bucket {buckets[i]}" if i >= 0 else "padding"

    return f"query {name(chunks[at[0], at[1]])}, key {name(windows[at[0], at[2]])}"


EXERCISES = by_name(
    Exercise("A2.sort", ("buckets",), ("order",), identities=_sort_identities),
    Exercise("A2.chunk", ("order", "chunk_length"), ("chunks",), identities=_chunk_identities),
    Exercise("A2.look", ("chunks",), ("windows",), identities=_look_identities),
    Exercise(
        "A2.visible", ("buckets", "chunks", "windows"), ("seen",), identities=_visible_identities, describe=_name_pair
    ),
    Exercise("A2.undo", ("rows", "chunks"), ("out",), identities=_undo_identities),
)
