"""Where a token stands: axial positions (a million places from two small tables), learned and
sinusoidal ones.
"""
