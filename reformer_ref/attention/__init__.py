"""Dense attention: the quadratic baseline that every sparse attention is compared with."""

from reformer_ref.attention.api import regular_attention, shared_qk_attention

__all__ = ["regular_attention", "shared_qk_attention"]
