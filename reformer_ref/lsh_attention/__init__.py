"""LSH attention: several rounds of hash, sort, chunk, attend and undo, merged into one softmax
(paper section 2).
"""

from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.record import AttentionRecord

__all__ = ["AttentionRecord", "LSHOptions", "lsh_attention"]
