"""Sort by (bucket, position), cut into chunks, look at neighbouring chunks, and undo (paper section
2, figure 2).
"""
