"""Angular locality-sensitive hashing: nearby directions fall into the same bucket (paper section 2,
"LSH").
"""
