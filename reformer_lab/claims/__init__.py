"""The paper's claims, run again: what each of them says, how it is tested here, and what came out.

Each claim is a module of its name (`fashion` is `images` with another configuration) and a file ``configs/NAME.json``;
see `experiment`.
"""

import importlib
from types import ModuleType

NAMES = (
    "table2", "counts", "figure3", "figure4", "figure5_depth", "figure5_speed", "headline", "full_size",
    "long_text", "images", "fashion", "translation",
)  # fmt: skip
OWN_DATA = ("counts", "figure3", "figure4", "figure5_depth", "long_text", "images", "fashion", "translation")  # --data


def claim(name: str) -> ModuleType:
    """The module of a claim. ValueError for other names."""
    from reformer_ref._arguments import require_choice

    require_choice("name", name, NAMES)
    return importlib.import_module(f"reformer_lab.claims.{'images' if name == 'fashion' else name}")
