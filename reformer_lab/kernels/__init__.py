"""Triton kernels to learn from, run in Triton's interpreter on a CPU, and a counter of what they do."""
