"""Every check of every component, on the specification, the plain PyTorch version and the public function.

Needs the core package alone: `python tests/all_checks.py` runs them without pytest, as in a fresh installation.
"""

import importlib
import inspect
import pkgutil
from functools import partial

import reformer_ref
import torch
from reformer_ref.testing import as_numpy

# What a check is called with, where that is not the function that it is named after.
SUBJECTS = {
    "reversible_inverse": "reversible_stack_inverse",
    "reversible_vjp": "reversible_stack_vjp",
    "collision_probability": "hash_vectors",
}
# Arguments of a check for PyTorch.
ARGUMENTS = {"random_rotations": {"make_generator": lambda seed: torch.Generator().manual_seed(seed)}}
# Arguments of a PyTorch function, which works in float32 by itself.
IN_FLOAT64 = {"sinusoidal_positions": {"dtype": torch.float64}}
# These take modules; tests/reversible and tests/lsh_attention adapt them.
MODULES = {"reversible_stack", "reversible_stack_inverse", "reformer_lm"}


def all_checks():
    """Pairs (what is checked, function without arguments that raises an AssertionError if it is wrong)."""
    for component in (m.name for m in pkgutil.iter_modules(reformer_ref.__path__) if m.ispkg):
        try:
            checks = importlib.import_module(f"reformer_ref.{component}.checks")
        except ModuleNotFoundError:  # weights and memory
            continue
        spec, plain = (importlib.import_module(f"reformer_ref.{component}.{name}") for name in ("spec", "pytorch"))
        for name, check in inspect.getmembers(checks, inspect.isfunction):
            if not name.startswith("check_"):
                continue
            subject = SUBJECTS.get(name.removeprefix("check_"), name.removeprefix("check_"))
            if hasattr(spec, subject):
                yield f"{component}: {name}, spec", partial(check, getattr(spec, subject))
            functions = {id(f): f for m in (plain, reformer_ref) if inspect.isfunction(f := getattr(m, subject, None))}
            for function in functions.values() if subject not in MODULES else ():
                arguments = ARGUMENTS.get(subject, {})
                yield (
                    f"{component}: {name}, {function.__module__}",
                    partial(check, as_numpy(partial(function, **IN_FLOAT64.get(subject, {}))), **arguments),
                )


if __name__ == "__main__":
    count = 0
    for count, (_, check) in enumerate(all_checks(), 1):  # noqa: B007
        check()
    print(f"{count} checks passed")
