"""Everything that is done with the reference: pictures, widgets, training, claims, assignments,
benchmarks.
"""
