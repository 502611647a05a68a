"""A3, LSH attention with several rounds: definitions, and pictures of the first cases."""

import numpy as np

from reformer_lab.classroom.cases import visible
from reformer_lab.classroom.exercises.chunking import sees_later
from reformer_lab.plots.drawing import OKABE_ITO, Picture, styled
from reformer_lab.plots.lsh_attention import patterns, weights_by_key

# The key of q, and the key of (3, 4)
KEYS = {
    "l2": (r"\frac{q_i}{\lVert q_i \rVert} = \frac{q_i}{\sqrt{\sum_c q_{ic}^2}}", "(0.6,\\; 0.8)"),
    "l1": (r"\frac{q_i}{\lVert q_i \rVert_1} = \frac{q_i}{\sum_c \lvert q_{ic} \rvert}", "(3/7,\\; 4/7)"),
    "rms": (r"\frac{q_i}{\mathrm{rms}(q_i)} = \frac{q_i}{\sqrt{\frac{1}{d} \sum_c q_{ic}^2}}", "(0.849,\\; 1.131)"),
}


def _describe_logits(variant):
    key, toy = KEYS[variant.key_norm]
    return f"""### Definition: keys and logits
Queries and keys are shared: each token has one vector $q_i \\in \\mathbb{{R}}^d$. As a query it is used unchanged. As a
key it is scaled, and the *logit* $\\ell_{{ij}}$ of query $i$ and key $j$ is

$$\\ell_{{ij}} = q_i \\cdot k_j, \\qquad k_i = {key}$$

with no further factor such as $1/\\sqrt d$. The key of a zero vector is the zero vector.

**By hand.** $q = (3, 4)$ has the key $k = {toy}$."""


def _describe_seen(variant):
    end, later = variant.pad == "end", sees_later(variant)
    place, where = ("s_i", "end of the last") if end else ("(s_i + f)", "start of the first")
    near, far = "c_i", f"c_i {'-' if variant.look == 'back' else '+'} {variant.n_look}"
    low, high = (far, near) if variant.look == "back" else (near, far)
    return f"""### Definition: visible keys of a round
Round $h$ has its own buckets $b_i$ and its own sorted order: `order[h, s]` is the token in slot $s$, counted from 0.
Token $i$ is in slot $s_i$: `order[h, s_i] == i`. There are $\\lceil L/m \\rceil$ chunks of $m$ places
(`chunk_length`); $f = \\lceil L/m \\rceil m - L$ places are free, at the **{where} chunk**. So token $i$ is in chunk

$$c_i = \\lfloor {place} / m \\rfloor$$

In round $h$, query $i$ sees key $j$ if

1. $b_j = b_i$: the same bucket,
2. ${low} \\le c_j \\le {high}$: the query's window,
3. $j {">" if later else "<"} i$: {"a later" if later else "an earlier"} **original position**.

$P_i^{{(h)}}$ is the set of these $j$. It never contains $i$ itself."""


def _describe_attend(variant):
    weight, toy, words = "N_{ij}\\, ", "1/2, 1/4 and 1/4", "**once for every round** in which it is visible"
    if variant.count == "once":
        weight, toy, words = "", "1/3 each", "**once**, in however many rounds it is visible"
    return f"""### Definition: one softmax over all rounds
$P_i$ is the union of all $P_i^{{(h)}}$: the keys that query $i$ sees in any round. $N_{{ij}}$ is the number of rounds
in which it sees $j$. One softmax covers $P_i$, and a key counts {words}:

$$o_i = \\frac{{\\sum_{{j \\in P_i}} {weight}e^{{\\ell_{{ij}}}} v_j}}
{{\\sum_{{j \\in P_i}} {weight}e^{{\\ell_{{ij}}}}}}$$

**Self.** If $P_i$ is empty, so that $i$ sees nothing in *any* round, then it sees only itself: $o_i = v_i$.
Otherwise it does not see itself.

**By hand.** Three keys have equal logits; the first is visible in two rounds, the others in one round each. The weights
are {toy}."""


def _describe_port(variant):
    weight, words = ("", "Nothing is divided by $N_{ij}$: a key is summed in every round in which it is visible.")
    if variant.count == "once":
        weight = "\\frac{1}{N_{ij}} "
        words = "With $1/N_{ij}$ in each of its rounds, a key counts once in all: a round depends on the others."
    return f"""### Definition: the result of one round
Round $h$ gives query $i$ the log-sum-exp $z$, and the output $o$ with weights that add up to 1:

$$z_i^{{(h)}} = \\log \\sum_{{j \\in P_i^{{(h)}}}} {weight}e^{{\\ell_{{ij}}}}, \\qquad
o_i^{{(h)}} = \\sum_{{j \\in P_i^{{(h)}}}} {weight}e^{{\\ell_{{ij}} - z_i^{{(h)}}}} v_j$$

{words} If $i$ sees nothing in this round, then $z_i^{{(h)}} = -\\infty$ and $o_i^{{(h)}} = 0$; the rule for
a token itself applies to all rounds together, not here."""


DESCRIBE = {
    "A3.logits": _describe_logits,
    "A3.seen": _describe_seen,
    "A3.attend": _describe_attend,
    "A3.port": _describe_port,
}


def illustrate(name, variant):
    """The picture of an exercise's first visible case: what goes in, and what is expected to come out."""
    arguments, results = visible(name, variant)[0]
    return PICTURES[name](*arguments, *results)


@styled
def draw_logits(q, logits):
    """Queries (L, 2) as circles and their keys as squares; the keys are found from the logits."""
    keys = np.linalg.lstsq(q, logits, rcond=None)[0].T  # (L, 2)
    picture = Picture(width=5.2, height=4.2)
    ax = picture.add_subplot()
    for i, (x, k) in enumerate(zip(q, keys, strict=True)):
        colour = OKABE_ITO[(4, 5, 2, 6, 0, 7)[i % 6]]
        ax.plot([0, x[0]], [0, x[1]], color=colour, linestyle=":", marker="", linewidth=1)
        ax.plot(*x, color=colour, marker="o", label="query" if i == 0 else None, linestyle="", fillstyle="none")
        ax.plot(*k, color=colour, marker="s", label="key" if i == 0 else None, linestyle="")
        ax.annotate(str(i), x, xytext=(5, 4), textcoords="offset points")
    ax.axhline(0, color="#BBBBBB", linewidth=0.8, marker="", linestyle="-", zorder=0)
    ax.axvline(0, color="#BBBBBB", linewidth=0.8, marker="", linestyle="-", zorder=0)
    ax.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption = """Points in the plane: each token's query (circle) and, on the same ray from the origin, its key
    (square). However long the queries are, all keys have one length, measured as this course measures it."""
    return picture.describe(caption, **{f"q_{i} · k_0": float(row[0]) for i, row in enumerate(logits)})


def draw_seen(order, buckets, chunk_length, seen):
    """The visible keys of each round."""
    picture = patterns({f"round {h + 1}": s.astype(int) for h, s in enumerate(seen)}, unit="count")
    listed = {f"order of round {h + 1}": _row(row, chunk_length) for h, row in enumerate(order)}
    listed |= {f"buckets of round {h + 1}": _row(row) for h, row in enumerate(buckets)}
    return picture.describe(picture.caption, **listed, **picture.numbers)


def draw_attend(logits, seen, v, out):
    """The visible keys of each round, and the weights: with the identity as values, the output is the weights."""
    return patterns({f"round {h + 1}": s.astype(int) for h, s in enumerate(seen)} | {"weights, percent": out})


def draw_merge(o, z, v, out):
    """The weight of each round: its output in this case is a unit vector, so the output is the weights."""
    weights = {f"round {h + 1}": out[:, h] for h in range(len(o))}
    picture = weights_by_key(weights, [f"token {i}" for i in range(out.shape[0])])
    caption = """Bar chart: tokens (x) against the weight of each round in the output (y, percent above the bars), one
    kind of bar for each round."""
    listed = {f"z of token {i}": _logarithms(column) for i, column in enumerate(z.T)}
    picture.axes[0].set(xlabel="", ylabel="weight of the round")
    return picture.describe(caption, **listed)


def draw_port(q, k, v, order, buckets, chunk_length, o, z):
    """The weights of each round by itself: with the identity as values, the output is the weights."""
    picture = patterns({f"round {h + 1}": value for h, value in enumerate(o)})
    listed = {f"z of round {h + 1}": _logarithms(row) for h, row in enumerate(z)}
    return picture.describe(picture.caption, **listed)


PICTURES = {
    "A3.logits": draw_logits,
    "A3.seen": draw_seen,
    "A3.attend": draw_attend,
    "A3.merge": draw_merge,
    "A3.port": draw_port,
}


def _row(numbers, chunk_length=0):
    """Numbers in a row, with a bar between chunks."""
    step = chunk_length or len(numbers)
    return " | ".join(" ".join(map(str, numbers[at : at + step])) for at in range(0, len(numbers), step))


def _logarithms(numbers):
    return ", ".join(f"{value:.2f}" for value in numbers).replace("-", "−").replace("inf", "∞")
