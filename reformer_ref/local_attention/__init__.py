"""Local attention: each chunk of the sequence attends to itself and its neighbours."""

from reformer_ref.local_attention.api import local_attention
from reformer_ref.local_attention.options import LocalOptions

__all__ = ["LocalOptions", "local_attention"]
