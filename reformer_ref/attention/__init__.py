"""Dense attention: the quadratic baseline, and the oracle that every sparse attention is compared
with.
"""
