"""What can be decoded from a cache, and what can be sampled with: asked by both versions of this
room.
"""

from reformer_ref._arguments import require_float, require_int
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions


def check_sampling(temperature=1.0, top_k=None, top_p=None):
    """Raise TypeError or ValueError unless temperature ≥ 0, top_k ≥ 1 (or None) and 0 < top_p ≤ 1
    (or None).
    """
    require_float("temperature", temperature, minimum=0.0)
    if top_k is not None:
        require_int("top_k", top_k)
    if top_p is not None and not 0.0 < require_float("top_p", top_p) <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def check_beams(vocab_size, start, end, max_new_tokens, beams=1, length_penalty=0.0):
    """Raise TypeError or ValueError unless start and end are two tokens, and the counts ≥ 1,
    length_penalty ≥ 0.
    """
    require_int("vocab_size", vocab_size, 2)
    for name, token in (("start", start), ("end", end)):
        require_int(name, token, 0, vocab_size - 1)
    if start == end:
        raise ValueError(f"start and end must be different tokens, got {start} for both")
    require_int("max_new_tokens", max_new_tokens)
    require_int("beams", beams, 1, 1024)
    require_float("length_penalty", length_penalty, minimum=0.0, below=1e3)


def require_strict(options):
    """TypeError or ValueError unless these are LSH options with the strict window."""
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    if options.window != "rank":
        raise ValueError(
            f'options.window must be "rank", the strict window, got {options.window!r}'
        )


def require_decodable(options):
    """TypeError or ValueError unless these are local options under which a prefix says all that a
    query sees.
    """
    if depends_on_length(options) or not options.causal:
        raise ValueError(
            "options must be causal, and without wrap if chunks_before > 1 or chunks_after > 0"
        )


def depends_on_length(options):
    """Whether a ring shows a causal local layer more, or the same more often, in shorter sequences."""
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    return options.wrap and (options.chunks_before > 1 or options.chunks_after > 0)
