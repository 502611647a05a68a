"""Images again, on Fashion-MNIST: the claim ``images`` with another configuration. See `images`."""

from reformer_lab.claims.images import pictures, rows, run, sub_runs, summarise

__all__ = ["pictures", "rows", "run", "sub_runs", "summarise"]
