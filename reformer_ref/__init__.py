"""The Reformer (Kitaev, Kaiser, Levskaya, ICLR 2020) as a reference to read.

Every component is a folder: `spec` defines it in NumPy, `pytorch` is the version to read, `checks`
says what any implementation must satisfy, and faster versions stand beside them in files of their
own. The names below are the public interface. They check their arguments; what they call does not.
"""

from importlib import import_module
from pkgutil import iter_modules

from reformer_ref.attention import regular_attention, shared_qk_attention
from reformer_ref.chunking import look_adjacent, sort_by_bucket, split_chunks, undo_sort
from reformer_ref.feed_forward import FeedForward, cross_entropy
from reformer_ref.generation import (
    Decoder,
    beam_search,
    generate,
    sample_token,
    token_probabilities,
)
from reformer_ref.hashing import default_n_buckets, hash_vectors, random_rotations
from reformer_ref.huggingface import to_huggingface
from reformer_ref.local_attention import LocalOptions, local_attention
from reformer_ref.lsh_attention import AttentionRecord, LSHOptions, lsh_attention
from reformer_ref.memory import Peak, count_peak, measure_peak, predict_peak
from reformer_ref.model import ReformerConfig, ReformerEncoderDecoder, ReformerLM
from reformer_ref.positions import AxialPositions, LearnedPositions, SinusoidalPositions
from reformer_ref.reversible import (
    InPlaceLayer,
    ReversibleBlock,
    ReversibleStack,
    reversible_stack,
    reversible_stack_inverse,
)
from reformer_ref.testing import as_numpy, autograd_vjp, central_difference, relative_error

__version__ = "0.1.0"
__all__ = [
    "AttentionRecord",
    "AxialPositions",
    "Decoder",
    "FeedForward",
    "InPlaceLayer",
    "LSHOptions",
    "LearnedPositions",
    "LocalOptions",
    "Peak",
    "ReformerConfig",
    "ReformerEncoderDecoder",
    "ReformerLM",
    "ReversibleBlock",
    "ReversibleStack",
    "SinusoidalPositions",
    "as_numpy",
    "autograd_vjp",
    "beam_search",
    "central_difference",
    "count_peak",
    "cross_entropy",
    "default_n_buckets",
    "generate",
    "hash_vectors",
    "local_attention",
    "look_adjacent",
    "lsh_attention",
    "measure_peak",
    "predict_peak",
    "random_rotations",
    "regular_attention",
    "relative_error",
    "reversible_stack",
    "reversible_stack_inverse",
    "sample_token",
    "shared_qk_attention",
    "sort_by_bucket",
    "split_chunks",
    "to_huggingface",
    "token_probabilities",
    "undo_sort",
]

# Two functions have the name of the subpackage that they come from, and hide it as an attribute of
# this package. They carry its modules: `reformer_ref.lsh_attention.pytorch` is the module as ever.
for _function in (lsh_attention, local_attention):
    _package = import_module(f"{__name__}.{_function.__name__}")
    for _module in iter_modules(_package.__path__):
        if _module.name not in ("fused", "triton"):  # which wait for a call
            setattr(_function, _module.name, import_module(f"{_package.__name__}.{_module.name}"))
