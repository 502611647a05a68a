"""What import-linter and ruff cannot say: every component has the same files, specification and PyTorch version have
the same functions, the reference needs few packages, and no file holds what belongs to one machine.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reformer_ref"
SOURCES = sorted(PACKAGE.rglob("*.py"))
COMPONENTS = sorted(path.parent.name for path in PACKAGE.glob("*/spec.py"))

# What the reference may import, beside the standard library.
LIBRARIES = {"numpy", "torch", "safetensors", "jaxtyping"}
# What single functions import where it is installed.
OPTIONAL = {"huggingface_hub": "to fetch weights by their name", "triton": "to run fused kernels on CUDA"}
# Modules that need such a library, and that only functions import.
NEED_A_LIBRARY = {f"reformer_ref.{name}.triton": "triton" for name in ("hashing", "lsh_attention")}

# Public functions that pytorch.py takes from its spec.py instead of writing them again.
WRITTEN_ONCE = {("hashing", "default_n_buckets"): "integers in, integers out: there is no array to be fast with"}
# Public functions of a spec.py that pytorch.py does without.
SPEC_ONLY = {
    ("lsh_attention", "visible_counts"): "the L × L table is what other versions never build",
    ("local_attention", "local_counts"): "the L × L table is what other versions never build",
    ("model", "reformer_lm"): "in PyTorch it is a module: ReformerLM.forward",
    ("model", "reformer_lm_loss"): "in PyTorch it is a module: ReformerLM.loss",
    ("model", "encoder_decoder"): "in PyTorch it is a module: ReformerEncoderDecoder",
    ("generation", "beam_search"): "it has a file of its own, beam.py",
}
# Arguments that are the same thing under the two libraries' own names.
SAME_ARGUMENT = {"rng": "generator"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def public_functions(component, file):
    """Public functions at the top level of a file, by name, in order."""
    body = parsed(PACKAGE / component / file).body
    return {n.name: n for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}


# Components


def test_there_are_ten_components():
    names = (
        "attention chunking feed_forward generation hashing local_attention lsh_attention model positions reversible"
    )
    assert names.split() == COMPONENTS


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_the_same_files(component):
    files = ("__init__.py", "spec.py", "pytorch.py", "checks.py")
    assert [f for f in files if not (PACKAGE / component / f).is_file()] == []


def test_specifications_and_checks_run_where_there_is_no_torch():
    """As in a course that uses NumPy alone, which gets these files without the others."""
    files = [p for p in SOURCES if p.name in ("spec.py", "checks.py", "options.py", "config.py")]
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]
    code = """
import importlib, sys, types
sys.modules["torch"] = None  # importing it fails
for module in sys.argv[1:]:
    for package in ("reformer_ref", module.rpartition(".")[0]):  # bare packages: their __init__.py import everything
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [package.replace(".", "/")]
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(modules) >= 2 * len(COMPONENTS)
    assert done.returncode == 0, done.stderr


def test_the_reference_needs_few_packages():
    graph = grimp.build_graph("reformer_ref", include_external_packages=True, cache_dir=None)
    outside = {m for m in graph.modules if graph.is_module_squashed(m)}
    assert outside - sys.stdlib_module_names - {"reformer_lab"} == LIBRARIES | OPTIONAL.keys()
    for path in SOURCES:
        at_import = [n for n in parsed(path).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {getattr(n, "module", None) or n.names[0].name for n in at_import}
        names |= {f"{n.module}.{a.name}" for n in at_import if isinstance(n, ast.ImportFrom) for a in n.names}
        module = name_of(path).removesuffix(".py").replace("/", ".")
        needed = {n.partition(".")[0] for n in names} & OPTIONAL.keys()
        assert needed == {NEED_A_LIBRARY[module]} if module in NEED_A_LIBRARY else not needed, module
        assert not names & NEED_A_LIBRARY.keys(), module


def test_the_reference_is_imported_without_optional_libraries():
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import reformer_ref, reformer_lab.cli"
    done = subprocess.run(
        [sys.executable, "-c", code, *OPTIONAL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Specification and PyTorch: the same names, arguments, defaults and order


def signature(function):
    """Positional arguments in order, and the defaults of all arguments, under the names of pytorch.py."""
    arguments = function.args
    positional = [SAME_ARGUMENT.get(a.arg, a.arg) for a in arguments.posonlyargs + arguments.args]
    last = positional[len(positional) - len(arguments.defaults) :]
    defaults = {name: ast.unparse(value) for name, value in zip(last, arguments.defaults, strict=True)}
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        defaults[SAME_ARGUMENT.get(argument.arg, argument.arg)] = ast.unparse(value) if value else "(none)"
    return positional, defaults


def is_annotated(function):
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return function.returns is not None or any(a.annotation for a in arguments)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_function_of_the_specification_has_a_twin(component):
    """Every one that is annotated or that has a check; the others are steps of these."""
    spec, torch = public_functions(component, "spec.py"), public_functions(component, "pytorch.py")
    checked = {name.removeprefix("check_") for name in public_functions(component, "checks.py")}
    wanted = {name for name, f in spec.items() if is_annotated(f) or name in checked}
    lacking = {(component, name) for name in wanted - torch.keys() if not name.endswith("_vjp")}
    explained = {pair for pair in WRITTEN_ONCE.keys() | SPEC_ONLY.keys() if pair[0] == component}
    assert lacking <= explained
    assert {name for _, name in explained} <= spec.keys() - torch.keys(), "an explanation of what is not so"


@pytest.mark.parametrize("component", COMPONENTS)
def test_twins_take_the_same_arguments_and_stand_in_the_same_order(component):
    spec, torch = public_functions(component, "spec.py"), public_functions(component, "pytorch.py")
    for name in spec.keys() & torch.keys():
        arguments, defaults = signature(spec[name])
        torch_arguments, torch_defaults = signature(torch[name])
        where = f"{component}.{name}: spec.py has ({', '.join(arguments)}), pytorch.py ({', '.join(torch_arguments)})"
        assert torch_arguments[: len(arguments)] == arguments, where
        assert {k: torch_defaults.get(k) for k in defaults} == defaults, f"{component}.{name}: the defaults differ"
        more = [a for a in torch_arguments[len(arguments) :] if a not in torch_defaults]
        assert not more, f"{where}: an argument that only pytorch.py has needs a default"
    assert [n for n in spec if n in torch] == [n for n in torch if n in spec]


# Manners


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_left_to_be_implemented(path):
    raised = [n.exc for n in ast.walk(parsed(path)) if isinstance(n, ast.Raise) and n.exc is not None]
    names = {n.id for exc in raised for n in ast.walk(exc) if isinstance(n, ast.Name)}
    assert "NotImplementedError" not in names


def tracked_files():
    """Text files that git tracks, or would: (relative name, text)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content[:4096]:
            yield name, content.decode("utf-8")


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("an unfinished place", r"\b(?:TO[D]O|FI[X]ME)\b"),
        ("a path of one machine", r"(?<![\w.~}])/(?:work|root|home|Users)\b"),
        (
            "a package registry's host",
            r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|npmjs\.)",
        ),
        ("a document that is not here", r"\bDESIGN\b"),
    ],
)
def test_files_are_finished_and_name_no_machine(kind, pattern):
    places = [
        f"{name}:{number}"
        for name, text in tracked_files()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line) and name != name_of(Path(__file__))
    ]
    assert not places, f"{kind}: {', '.join(places[:20])}"
