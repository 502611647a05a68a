"""Angular locality-sensitive hashing: vectors in similar directions fall into the same bucket."""

from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations

__all__ = ["default_n_buckets", "hash_vectors", "random_rotations"]
