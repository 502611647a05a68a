"""The reversible residual stack: two streams, an exact inverse, and a backward pass that needs only
the outputs.
"""
