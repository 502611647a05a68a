"""What is measured: cases, each a list of points, each point a set of contenders that do the same work.

Attention is 8 heads × L × 64, forward and backward, hash included, chunks of 64, causal, float32. A step is forward,
loss, backward and Adam of a model of d_model 256, 4 heads, d_ff 1024, 2 rounds, on one sequence of L bytes. Dense
attention is PyTorch's own kernel on the same shapes. "matmul" is no attention at all: the same number of
multiplications as plain windows need, as nothing but batched matrix products, which is as fast as it could be.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from reformer_ref._arguments import require_int

HEADS, D_HEAD, CHUNK = 8, 64, 64
MODEL = {"vocab_size": 256, "d_model": 256, "n_heads": 4, "d_ff": 1024}
FF_CHUNK = 4096  # positions of feed-forward and loss worked on at a time, the same for all contenders
GEMM_FLOPS = 2e10  # arithmetic of one repeat of the case "gemm"
QUICK_LENGTHS, QUICK_MATRICES, QUICK_FLOPS = (256, 512), (16,), 1e9


@dataclass(frozen=True)
class Contender:
    """Who does the work. ``module``: what must be installed; ``longest``: where it is no longer asked."""

    name: str
    module: str | None = None
    longest: int | None = None
    growth: int = 1  # time grows with this power of the length

    @property
    def ours(self):
        """Whether it is this package."""
        return self.name.startswith("ours")

    @property
    def port(self):
        """Whether it is another Reformer: what ratios refer to."""
        return self.module is not None

    @property
    def absent(self):
        """Why it cannot run here, or None."""
        if self.module is None or find_spec(self.module):
            return None
        return f"{self.module} is not installed (pip install 'reformer_ref[peers]')"


_CONTENDERS = (
    Contender("ours-trax"), Contender("ours-paper"), Contender("ours-strict"), Contender("ours"),
    Contender("reformer-pytorch", "reformer_pytorch", longest=65536),
    Contender("huggingface", "transformers", longest=65536), Contender("dense", longest=65536, growth=2),
    Contender("matmul"),
)  # fmt: skip
CONTENDERS = {contender.name: contender for contender in _CONTENDERS}


@dataclass(frozen=True)
class Case:
    """Names of contenders, the kind of work, and the points measured unless others are asked for."""

    title: str
    kind: str
    contenders: tuple[str, ...]
    lengths: tuple[int, ...]
    rounds: tuple[int, ...] = (4,)
    depths: tuple[int, ...] = (6,)
    also: tuple[tuple[int, int, int], ...] = ()  # further (length, rounds, depth)


LSH = ("ours-trax", "ours-paper", "ours-strict", "reformer-pytorch", "huggingface")
CASES = {
    "attention": Case(
        "attention by length", "attention", (*LSH, "dense", "matmul"), tuple(2**k for k in range(10, 19))
    ),
    "rounds": Case("attention by rounds", "attention", (*LSH, "matmul"), (16384,), rounds=(1, 2, 4, 8)),
    "step": Case(
        "training step", "step", ("ours", "reformer-pytorch", "huggingface"), (4096, 16384, 65536), rounds=(2,),
        also=((16384, 2, 2), (16384, 2, 12)),
    ),
    "crossover": Case(
        "LSH against dense attention", "attention", ("ours-trax", "dense"), tuple(2**k for k in range(9, 15)),
        rounds=(1, 4),
    ),
    "gemm": Case("batched matrix products (n, 64, 64) × (n, 64, 128)", "gemm", ("matmul",), (16, 64, 256, 1024, 4096)),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One piece of work. length: tokens (for "gemm", matrices); flops: multiplications and additions, if known."""

    kind: str
    length: int
    n_hashes: int
    n_layers: int
    flops: float | None

    @property
    def label(self):
        """The point in words."""
        if self.kind == "gemm":
            return f"{self.length:,} matrices"
        depth = f", {self.n_layers} layers" if self.kind == "step" else ""
        return f"{self.length:,} tokens, {self.n_hashes} round{'s' * (self.n_hashes > 1)}{depth}"


def attention_flops(length, n_hashes):
    """Forward and backward of plain windows: 7 matrix products (2 forward, 5 backward, scores recomputed)."""
    pairs = HEADS * n_hashes * length * 2 * CHUNK
    return 7 * 2.0 * pairs * D_HEAD


def points(name, lengths=None, rounds=None, depths=None, quick=False):
    """The points of a case, shortest first; any list given replaces the case's own.

    ValueError for lengths that do not suit all contenders.
    """
    case = CASES[name]
    asked = lengths or rounds or depths
    if quick and lengths is None:
        lengths = QUICK_MATRICES if case.kind == "gemm" else QUICK_LENGTHS
    for number in (*(rounds or ()), *(depths or ())):
        require_int("--n-hashes and --n-layers", number)
    for length in lengths or ():
        require_int("--length", length)
        if case.kind != "gemm" and length % (2 * CHUNK):
            raise ValueError(f"--length must be multiples of {2 * CHUNK} (the peers need them to be), got {length}")
    wanted = {(n, h, d) for n in lengths or case.lengths for h in rounds or case.rounds for d in depths or case.depths}
    if not asked and not quick:
        wanted |= set(case.also)
    return [_point(case.kind, *numbers, quick) for numbers in sorted(wanted)]


def _point(kind, length, n_hashes, depth, quick):
    gemm_flops = QUICK_FLOPS if quick else GEMM_FLOPS
    flops = {"attention": attention_flops(length, n_hashes), "gemm": gemm_flops, "step": None}[kind]
    return Point(kind, length, n_hashes, depth if kind == "step" else 0, flops)


def chosen(name, only=None):
    """The contenders of a case; ``only``: names, or "ours" for all of ours. ValueError if none of the case is named."""
    names = CASES[name].contenders
    if only:
        names = [n for n in names if n in only or (CONTENDERS[n].ours and "ours" in only)]
        if not names:
            raise ValueError(f"--only {' '.join(only)}: the case {name} has {', '.join(CASES[name].contenders)}")
    return [CONTENDERS[n] for n in names]
