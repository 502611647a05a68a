"""LSH attention: several rounds of hash, sort, chunk, attend and undo, merged into one softmax
(paper section 2).
"""
