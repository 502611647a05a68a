"""The claims by name: which module runs each of them. Everything else about a claim stands in its
configuration.
"""

import importlib

from reformer_ref._arguments import require_choice

NAMES = (
    "table2", "counts", "figure3", "figure4", "figure5_depth", "figure5_speed", "headline", "full_size",
    "long_text", "images", "fashion", "translation",
)  # fmt: skip

OWN_DATA = ("counts", "figure3", "figure4", "figure5_depth", "long_text", "images", "fashion", "translation")  # --data


def claim(name):
    """The module of a claim. ValueError for other names."""
    require_choice("name", name, NAMES)
    return importlib.import_module(f"reformer_lab.claims.{name}")
