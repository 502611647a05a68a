"""What is done position by position: layer norm, feed-forward and cross-entropy (paper section 3).

Because no position looks at another, a chunk of positions can be computed, and later
differentiated, by itself.
"""

from reformer_ref.feed_forward.api import FeedForward, cross_entropy, feed_forward, layer_norm

__all__ = ["FeedForward", "cross_entropy", "feed_forward", "layer_norm"]
