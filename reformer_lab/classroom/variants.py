"""Variants: the conventions an assignment uses, drawn from an instructor's seed so that no published code fits them.

``Variant()`` is the package's own way of doing things, and the open mode of every assignment. A graded course draws
another one; the notebooks then define, in words and equations, what the drawn conventions mean.
"""

import hashlib
import importlib
import json
import textwrap
from dataclasses import asdict, dataclass, fields

import numpy as np
from reformer_ref._arguments import require_choice, require_int

TOPICS = {"A1": "hashing", "A2": "chunking", "A3": "lsh_attention", "A4": "reversible", "A5": "memory"}

# Values that a field may take; the first one is the package's own.
CHOICES = {
    "hash_order": ("positive_first", "negative_first", "interleaved"),
    "hash_ties": ("lowest", "highest"),
    "factor_order": ("first_fastest", "last_fastest"),
    "sort_ties": ("earliest_first", "latest_first"),
    "look": ("back", "ahead"),
    "n_look": (1, 2, 3),
    "look_order": ("by_place", "nearest_first"),
    "pad": ("end", "start"),
    "n_hashes": (2, 3, 4, 5),
    "key_norm": ("l2", "l1", "rms"),
    "count": ("once", "every"),
    "coupling": ("f_then_g", "g_first"),
    "sign": (1, -1),
    "carry": (1.0, 0.5, 0.75, 1.25, 1.5, 2.0),
    "keep": ("high", "low"),
    "length": (8192, 4096, 5120, 6144, 7168),
    "d_model": (256, 128, 192, 320, 384),
    "n_layers": (6, 4, 5, 7, 8),
    "number_bytes": (4, 2, 8),
    "block_bytes": (512, 256, 1024, 2048, 4096),
    "scores_at_a_time": (524288, 262144, 393216, 1048576),
    "optimizer_states": (2, 0),
    "tied": (False, True),
    "ff_chunk": (2048, 512, 1024, 4096),
    "dense_pairs": ("half", "all"),
    "operations": ("training", "forward"),
    "margin": (1, 2, 3, 4),
}
# The fields that each assignment reads.
USES = {
    "A1": ("hash_order", "hash_ties", "factor_order"),
    "A2": ("sort_ties", "look", "n_look", "look_order", "pad"),
    "A3": ("key_norm", "count", "n_hashes", "sort_ties", "look", "n_look", "pad"),
    "A4": ("coupling", "sign", "carry", "keep"),
    "A5": (*list(CHOICES)[list(CHOICES).index("length") :], "n_look", "n_hashes"),
}
# In a drawn variant at least one field of every group differs from the package's own. A3 shares the groups of A2, and
# its `count` stays free: dividing by how often a pair was met is the harder half, and should come up in some courses.
UNUSUAL = (
    *(("hash_order",), ("hash_ties", "factor_order")),
    *(("sort_ties",), ("look", "n_look"), ("look_order", "pad")),
    ("key_norm",),
    *(("carry",), ("coupling", "sign")),
    *(("number_bytes",), ("block_bytes",), ("margin",), ("operations", "dense_pairs")),
)


@dataclass(frozen=True)
class Variant:
    """The conventions of one course; every field is described where an assignment uses it.

    A1. hash_order: the list whose largest entry gives the bucket: [xR ; −xR], [−xR ; xR], or (x·r₁, −x·r₁,
    x·r₂, −x·r₂, …). hash_ties: the index that wins when several are largest. factor_order: which factor of a factorised
    bucket number counts in ones.

    A2. sort_ties: the order inside a bucket, by rising or falling position. look, n_look: a chunk sees itself and
    ``n_look`` chunks before it, or after it. look_order: the chunks of a window by their place, or the chunk itself
    first and then its neighbours from near to far. pad: where the free places are, in the last chunk or in the first.

    A3. n_hashes: rounds. key_norm: a key is q/‖q‖₂, q/Σ|q| or q/√(mean q²). count: a pair that meets in m rounds counts
    once, or m times.

    A4. coupling: y₁ = c·x₁ ± F(x₂), y₂ = c·x₂ ± G(y₁), or y₂ = c·x₂ ± G(x₁), y₁ = c·x₁ ± F(y₂); sign: that ±;
    carry: that c. keep: dropout keeps what drew a high number, or a low one.

    A5. length, d_model, n_layers: sizes. number_bytes, block_bytes: bytes of a number, and of the blocks in which
    memory is given out. scores_at_a_time, ff_chunk: what is worked on at once. optimizer_states, tied: weights.
    dense_pairs, operations, margin: what is compared at the crossover.
    """

    hash_order: str = "positive_first"
    hash_ties: str = "lowest"
    factor_order: str = "first_fastest"
    sort_ties: str = "earliest_first"
    look: str = "back"
    n_look: int = 1
    look_order: str = "by_place"
    pad: str = "end"
    n_hashes: int = 2
    key_norm: str = "l2"
    count: str = "once"
    coupling: str = "f_then_g"
    sign: int = 1
    carry: float = 1.0
    keep: str = "high"
    length: int = 8192
    d_model: int = 256
    n_layers: int = 6
    number_bytes: int = 4
    block_bytes: int = 512
    scores_at_a_time: int = 524288
    optimizer_states: int = 2
    tied: bool = False
    ff_chunk: int = 2048
    dense_pairs: str = "half"
    operations: str = "training"
    margin: int = 1

    def __post_init__(self):
        for name, choices in CHOICES.items():
            require_choice(name, getattr(self, name), choices)

    @classmethod
    def draw(cls, seed):
        """The variant of an instructor's integer seed ≥ 0; of every assignment at least two conventions are unusual."""
        rng = np.random.default_rng(require_int("seed", seed, minimum=0))
        drawn = {name: choices[rng.integers(len(choices))] for name, choices in CHOICES.items()}
        for group in UNUSUAL:
            if all(drawn[name] == CHOICES[name][0] for name in group):
                name = group[rng.integers(len(group))]
                drawn[name] = CHOICES[name][rng.integers(1, len(CHOICES[name]))]
        return cls(**drawn)

    def only(self, assignment):
        """The variant of one assignment ("A1"): its own fields as they are, all others as the package has them."""
        return type(self)(**{name: getattr(self, name) for name in USES[assignment]})

    @property
    def open(self):
        """Whether this is the package's own way: the open mode."""
        return self == type(self)()

    def to_json(self):
        """One line of JSON with every field."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        """The variant that ``to_json`` wrote; ValueError for fields that are missing or unknown."""
        given = json.loads(text)
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or set(given) != set(known):
            raise ValueError(f"a variant must have exactly the fields {', '.join(known)}, got {text:.200}")
        return cls(**given)

    def rng(self, name, part):
        """A generator for the cases of one exercise: a function of the variant, the name and the part alone."""
        digest = hashlib.sha256(f"{self.to_json()} {name} {part}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def literal(self):
        """Python code that makes this variant: the fields that are not the package's own, in lines of 112 letters."""
        usual = asdict(type(self)())
        unusual = [f"{name}={value!r}" for name, value in asdict(self).items() if value != usual[name]]
        return "Variant(" + textwrap.fill(", ".join(unusual), 106, subsequent_indent="    ") + ")"

    def describe(self, key):
        """The definition of a convention as Markdown, such as ``describe("A1.hash")``."""
        topic = importlib.import_module(f"reformer_lab.classroom.exercises.{TOPICS[key.partition('.')[0]]}")
        if key not in topic.DESCRIBE:
            raise ValueError(f"key must be one of {', '.join(topic.DESCRIBE)}, got {key!r}")
        return topic.DESCRIBE[key](self)
