"""Definitions of A5 in Markdown, for every variant: what is counted, and by which rules."""

SORT = 4  # operations per token and level of a sort
PRODUCTS = {"training": (6, 7), "forward": (2, 2)}  # matrix products: dense, LSH


def _peak(v):
    block = v.block_bytes
    return rf"""**Alive.** Tensor $i$ lies in storage $s_i$ of $b_i$ bytes. It exists from moment
$\text{{born}}_i \ge 0$ until just before moment $\text{{died}}_i$; $-1$ means to the end. Several tensors may view one
storage, with equal $b_i$ then: the storage exists from the first birth to the last death of its tensors. Let $A(t)$ be
the storages alive at moment $t$ that were born **after moment 0**; those born at 0 existed before and do not count.
Memory is allocated in blocks of **{block} bytes**:

$$M = \max_t \sum_{{s \in A(t)}} {block} \cdot \lceil b_s / {block} \rceil$$"""


def _scores(v):
    beside = "1 chunk" if v.n_look == 1 else f"{v.n_look} chunks"
    return rf"""**Scores.** A number takes **{v.number_bytes} bytes**.

* *Dense*: each of $n_{{heads}}$ heads has $L \times L$ scores.
* *Chunked*: in each of $n_{{hashes}}$ rounds the sorted tokens of a head fill $\lceil L / c \rceil$ chunks of $c$ =
  `chunk_length` places (padding fills the last one). Every place of a chunk has a score for every place of its window:
  its own chunk and **{beside} beside it**. Outermost chunks have padding there, and the same number of scores.
* *Streamed*: the same scores, one block of whole chunks at a time. A block holds at most
  **{v.scores_at_a_time:,} scores**, but at least one chunk's, and never more than all heads have in one round."""


def _step(v):
    keeps = {0: "no further number", 2: "two further numbers"}[v.optimizer_states]
    tables = "**1 table**" if v.tied else "**3 tables**"
    whose = "embedding and head share it" if v.tied else "1 embedding; 2 for the head, which reads both streams"
    return rf"""**A training step** on $L$ tokens, **{v.number_bytes} bytes** a number; $d$ = `d_model`.

* *weights*: {tables} of `vocab_size` $\times\, d$ ({whose}), and in each layer $3 d^2 + 2 d\, d_{{ff}}$; each weight
  has a gradient and **{keeps}** of the optimizer.
* *kept* by an ordinary stack: 7 vectors of $d$ per layer and token (attention: input, normalised, queries, values,
  result; feed-forward: input, normalised). By a reversible one: the two output streams, whatever the depth.
* *work* in backward: the gradients of two streams. A reversible stack adds the branch that it recomputes, the larger
  of attention (5 vectors of $d$ for all tokens) and feed-forward ($2 d + 2 d_{{ff}}$ numbers for each of
  **{v.ff_chunk:,} tokens**, or of all if fewer)."""


def _operations(v):
    dense, lsh = PRODUCTS[v.operations]
    pairs = "$L (L + 1) / 2$ (hidden pairs are skipped)" if v.dense_pairs == "half" else "$L^2$"
    passes = {"training": "forward and backward", "forward": "forward only"}[v.operations]
    return rf"""**Operations** of one head, {passes}. A product over $p$ pairs costs $2\, d\, p$ with $d$ = `d_head`.

* *Dense*: **{dense} products** over {pairs} pairs.
* *LSH*: in every round **{lsh} products** over $\lceil L / c \rceil \cdot c$ queries times $(n_{{look}} + 1)\, c$
  keys; hashing once, $2\, d \cdot n_{{buckets}} / 2$ for each of $L$ tokens with
  $n_{{buckets}} = 2 \max(1, \lfloor L / c \rfloor)$; and sorting, ${SORT}\, L\, \lceil \log_2 L \rceil$."""


def _crossover(v):
    lead = "" if v.margin == 1 else f"{v.margin} \\cdot "
    return rf"""**Crossover.** LSH attention *pays* at a length where ${lead}\mathrm{{lsh}}(L) < \mathrm{{dense}}(L)$.
The crossover is the shortest length of whole chunks, $L = c, 2c, 3c, \dots \le$ `longest`, at which it pays; 0 if
it pays at none. From the crossover on it pays at every longer one."""


DESCRIBE = {
    "A5.peak": _peak,
    "A5.scores": _scores,
    "A5.step": _step,
    "A5.operations": _operations,
    "A5.crossover": _crossover,
}
