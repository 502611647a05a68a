"""Sort by (bucket, position), cut into chunks, look at neighbours, and undo (paper section 2)."""

from reformer_ref.chunking.api import look_adjacent, sort_by_bucket, split_chunks, undo_sort

__all__ = ["look_adjacent", "sort_by_bucket", "split_chunks", "undo_sort"]
