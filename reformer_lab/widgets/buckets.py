"""Explorer: which words or characters of a sentence share a bucket, by their spelling or by a model's queries."""

import re
import zlib
from functools import lru_cache

import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from reformer_ref._arguments import clear_errors
from reformer_ref._tensors import evaluating
from reformer_ref.chunking.spec import sort_by_bucket, split_chunks, undo_sort
from reformer_ref.hashing.spec import hash_vectors, random_rotations
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

from reformer_lab.plots.chunking import round_in_rows
from reformer_lab.plots.drawing import Picture, bucket_colours, controls, readable_on, styled

SENTENCE = "She hashes words; her hashed word hashing worked: these words were hashed, the worker sorted sorting words."
D_HEAD, LINE, LONGEST = (64, 104, 120)  # size of a vector; characters of a line of the picture; bytes of a text


@clear_errors
def split(text, by):
    """The tokens of a text: "words" (and single marks) or "characters"."""
    if by not in ("words", "characters"):
        raise ValueError(f'by must be "words" or "characters", got {by!r}')
    tokens = re.findall(r"\w+|[^\w\s]", text) if by == "words" else list(text)
    if not tokens:
        raise ValueError(f"text must hold at least one token, got {text!r:.60}")
    return tokens


@clear_errors
def n_grams(tokens, by):
    """The n-grams of each token: a list of lists of strings.

    Of a word: all n-grams of two and three letters of ‹word›, with marks for its ends. Of a character: itself, twice,
    and itself with the character before and with the next.
    """
    if by == "words":
        marked = [f"‹{token.lower()}›" for token in tokens]
        return [[word[i : i + n] for n in (2, 3) for i in range(len(word) - n + 1)] for word in marked]
    around = ["‹", *(token.lower() for token in tokens), "›"]
    threes = zip(around, around[1:], around[2:], strict=False)
    return [[c, c, f"{before}|{c}", f"{c}|{after}"] for before, c, after in threes]


@clear_errors
def embed(tokens, by="words"):
    """A vector for each token: float64 (L, 64), the sum of one Gaussian vector per n-gram.

    The vector of an n-gram is drawn from a generator seeded with its CRC-32, so it is the same everywhere; tokens with
    many n-grams in common are close. Nothing is learned, and meaning plays no role.
    """
    return np.stack([np.sum([_direction(n_gram) for n_gram in of_token], axis=0) for of_token in n_grams(tokens, by)])


@lru_cache(maxsize=1 << 14)
def _direction(n_gram):
    return np.random.default_rng(zlib.crc32(n_gram.encode("utf-8", "replace"))).standard_normal(D_HEAD)


@controls(text=str, split_by=["words", "characters"], n_buckets=[2, 4, 8, 16], rounds=(1, 4), seed=(0, 20))
def spelling(text=SENTENCE, split_by="words", n_buckets=8, rounds=2, seed=0):
    """Buckets of the tokens of ``text``, embedded by their spelling. seed: of the random rotations."""
    tokens = split(text, split_by)
    rotations = random_rotations(np.random.default_rng(seed), rounds, D_HEAD, n_buckets)
    return bucket_lists(tokens, hash_vectors(embed(tokens, split_by), rotations, n_buckets), n_buckets)


@clear_errors
def rows(text, split_by="words", n_buckets=4, seed=0, chunk_length=4):
    """One round of causal LSH attention on the first 24 tokens of ``text``, row by row as in the paper's figure 2."""
    tokens = split(text, split_by)[:24]
    rotations = random_rotations(np.random.default_rng(seed), 1, D_HEAD, n_buckets)
    buckets = hash_vectors(embed(tokens, split_by), rotations, n_buckets)  # (1, L)
    order = sort_by_bucket(buckets)[0]
    visible = visible_counts(buckets, LSHOptions(chunk_length=chunk_length))
    chunks = split_chunks(order, chunk_length)
    return round_in_rows(tokens, buckets[0], order, undo_sort(order), chunks, visible)


@clear_errors
def buckets_of_model(model, text):
    """Buckets of the first 120 bytes of ``text`` in a model's first LSH layer: int (n_heads, n_hashes, L).

    The queries of that layer are hashed with the rotations that it keeps. ValueError without an LSH layer.
    """
    layers = [
        layer for block in model.backbone.stack.blocks for layer in block.layers if getattr(layer, "kind", "") == "lsh"
    ]
    if not layers:
        raise ValueError(f"model must have an LSH layer, its layers are {', '.join(model.config.layers)}")
    caught, layer = [], layers[0]
    handle = layer.q.register_forward_hook(lambda module, inputs, q: caught.append(q))  # (1, L, n_heads·d_head)
    try:
        with evaluating(model):
            model.hidden(torch.tensor([list(_bytes(text))]))
    finally:
        handle.remove()
    n_heads = model.config.n_heads
    q = caught[0].unflatten(-1, (n_heads, -1)).transpose(1, 2)  # (1, n_heads, L, d_head)
    return layer.hash(q, range(n_heads))[0].numpy().astype(np.int64)


@clear_errors
def queries(model, n_buckets, start="To sort the words by what they say, the layer hashes what it asks."):
    """A function with controls, for ``explore``: the buckets of a text's bytes in ``model``, head by head."""

    @controls(text=str, head=[*range(1, model.config.n_heads + 1)])
    def draw(text=start, head=1):
        """Buckets of the bytes of ``text`` in one head, all rounds."""
        labels = [chr(b) if 32 <= b < 127 else f"{b:02x}" for b in _bytes(text)]
        return bucket_lists(labels, buckets_of_model(model, text)[head - 1], n_buckets)

    return draw


def _bytes(text):
    return text.encode("utf-8", "replace")[:LONGEST]


@clear_errors
def collision_rates(buckets, alike):
    """(P(same bucket | alike), P(same bucket | not alike)) over pairs i < j and all rounds, floats.

    buckets: int (…, L). alike: bool (L, L), symmetric. NaN where there are no such pairs.
    """
    together = (buckets[..., :, None] == buckets[..., None, :]).reshape(-1, *alike.shape).mean(0)
    i, j = np.triu_indices(len(alike), k=1)
    yes = alike[i, j]
    return tuple(float(together[i, j][chosen].mean()) if chosen.any() else float("nan") for chosen in (yes, ~yes))


@styled
def bucket_lists(tokens, buckets, n_buckets):
    """The text in its order, and for each round its tokens by bucket. tokens: L texts; buckets: int (rounds, L)."""
    buckets = np.asarray(buckets)
    if buckets.ndim != 2 or buckets.shape[1] != len(tokens) or buckets.size == 0:
        raise ValueError(f"buckets must have shape (rounds, {len(tokens)}), got {buckets.shape}")
    if buckets.min() < 0 or buckets.max() >= n_buckets:
        raise ValueError(f"buckets must lie in 0 … {n_buckets - 1}, got {buckets.min()} … {buckets.max()}")
    labels = ["␣" if t.isspace() else t if len(t) <= 24 else t[:23] + "…" for t in tokens]
    panels, numbers = {"text, in its order": _flow([(label, None) for label in labels])}, {}
    for h, row in enumerate(buckets):
        groups = {int(b): np.flatnonzero(row == b) for b in np.unique(row)}
        cells = [cell for b, members in groups.items() for cell in [(b, "tag"), *((labels[i], b) for i in members)]]
        panels[f"round {h + 1}, by bucket"] = _flow(cells)
        lists = (f"{b}: {' '.join(labels[i] for i in members)}" for b, members in groups.items())
        numbers[f"round {h + 1}"] = " | ".join(lists)
    lines = [1 + max(y for *_, y in cells) for cells in panels.values()]
    picture = Picture(width=9.5, height=0.32 * sum(lines) + 0.36 * len(panels) + 0.1)
    axes = picture.subplots(len(panels), 1, height_ratios=lines, squeeze=False)[:, 0]
    colours = bucket_colours(n_buckets)
    for ax, (title, cells), n in zip(axes, panels.items(), lines, strict=True):
        _draw_cells(ax, cells, colours)
        ax.set(xlim=(0, LINE), ylim=(n, 0), xticks=[], yticks=[], title=title)
        ax.spines[:].set_visible(False)
    always = (buckets[:, :, None] == buckets[:, None, :]).all(0)
    numbers["pairs together in every round"] = int((always.sum() - len(tokens)) // 2)
    return picture.describe(
        f"Rows of {len(tokens)} tokens: first the text in its order, then, round by round, the same tokens gathered "
        f"by bucket; a framed number begins each of the {n_buckets} buckets that is in use. Tokens that share a bucket "
        "in one round may be in different buckets in another.",
        **numbers,
    )


def _flow(cells):
    """Cells from left to right, with line breaks: [(label, bucket, whether a tag, x, width, line)].

    A tag keeps some distance from the bucket before, and is on one line with the first member of its bucket.
    """
    placed, x, line = [], 0.0, 0
    widths = [len(str(label)) + 1.2 for label, _ in cells]
    for (label, bucket), width, after in zip(cells, widths, [*widths[1:], 0.0], strict=True):
        tag = bucket == "tag"
        x += 0.8 * (tag and x > 0)
        if x + width + after * tag > LINE:
            x, line = 0.0, line + 1
        placed.append((str(label), label if tag else bucket, tag, x, width, line))
        x += width
    return placed


def _draw_cells(ax, cells, colours):
    boxes, faces, edges = [], [], []
    for label, bucket, tag, x, width, line in cells:
        colour = "white" if tag else "#eeeeee" if bucket is None else colours[bucket]
        boxes.append(Rectangle((x + 0.1 * tag, line + 0.08), width - 0.2 * tag, 0.84))
        faces.append(colour)
        edges.append("black" if tag else "white")
        style = {"family": "monospace", "fontsize": 9, "ha": "center", "va": "center", "parse_math": False}
        weight = "bold" if tag else "normal"
        text = ax.text(x + width / 2, line + 0.5, label, color=readable_on(colour), weight=weight, **style)
        text.set_in_layout(False)  # hundreds of texts, none of which decides where a panel is
    ax.add_collection(PatchCollection(boxes, facecolors=faces, edgecolors=edges), autolim=False)
