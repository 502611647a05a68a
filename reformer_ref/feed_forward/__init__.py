"""The work that is done position by position (layer norm, feed-forward, cross-entropy), in slices
of positions.

Because no position looks at another, a slice can be computed, and later differentiated, all by
itself.
"""
