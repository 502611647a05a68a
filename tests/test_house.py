"""The rules of the house, as tests: furniture of the rooms, twins of names, direction of imports,
length, manners.
"""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "reformer_ref"
SOURCES = sorted(PACKAGE.rglob("*.py"))

EXPECTED_ROOMS = {
    "attention",
    "hashing",
    "chunking",
    "lsh_attention",
    "local_attention",
    "feed_forward",
    "reversible",
    "positions",
    "model",
    "generation",
}
ROOMS = sorted(EXPECTED_ROOMS | {spec.parent.name for spec in PACKAGE.glob("*/spec.py")})

# From the ground up: a module imports from its own floor and the floors below. A new module needs a
# place here.
ABOVE_ROOMS = [
    {"model"},
    {"generation"},
    {"checkpoint", "counting", "memory", "planner", "record", "schedule", "processes", "run_folder", "optimizer"},
    {"training_run"},
    {"training"},
    {"bench", "million", "train_command"},
    {"measured_plots", "explorers"},
    {"figures", "notebooks", "reproduce"},
    {"classroom"},
    {"cli"},
    {"__main__"},
]
GROUND = {"files", "validate", "compare", "tensors", "bridge", "replay", "data", "drawing"}
FLOORS = [GROUND, set(ROOMS) - set().union(*ABOVE_ROOMS), *ABOVE_ROOMS]

# Public functions that pytorch.py takes from its spec.py instead of writing them again, with the
# reason.
WRITTEN_ONCE = {("hashing", "default_n_buckets"): "integers in, integers out: there is no array to be fast with"}
# Public functions of a spec.py that pytorch.py does without, with the reason.
SPEC_ONLY = {
    ("lsh_attention", "visible_counts"): "the L × L table is what the streaming version never builds",
    ("model", "reformer_lm"): "in PyTorch it is a module: ReformerLM.forward",
    ("model", "reformer_lm_loss"): "in PyTorch it is a module: ReformerLM.loss",
    ("model", "encoder_decoder"): "in PyTorch it is a module: ReformerEncoderDecoder",
    ("generation", "beam_search"): "it has a file of its own, beam.py: in PyTorch it takes a model and many sentences",
    ("local_attention", "local_counts"): "the L × L table is what the chunked version never builds",
}
# Arguments that are the same thing under the two libraries' own names.
SAME_ARGUMENT = {"rng": "generator"}

MAX_LINES = {"spec.py": 200, "pytorch.py": 420}
MAX_FUNCTION_LINES = 60


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def furniture(room, file):
    path = PACKAGE / room / file
    assert path.is_file(), f"{name_of(path)} is missing"
    return path


def public(path, kinds=(ast.FunctionDef, ast.ClassDef)):
    """Public definitions at the top level of a file, by name, in order."""
    return {n.name: n for n in tree(path).body if isinstance(n, kinds) and not n.name.startswith("_")}


def all_functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports(path):
    """Every imported module of a file as (line, dotted name), also inside functions and relative
    ones.
    """
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from a import b`: b may be a module of its own
                inner = f"{base}.{alias.name}"
                found.append((node.lineno, inner if inner in MODULES else base))
    return found


def floor_of(module):
    part = module.split(".")[1]
    floors = [level for level, names in enumerate(FLOORS) if part in names]
    assert floors, f"{module} has no place in the house: add {part!r} to a floor in {name_of(Path(__file__))}"
    return floors[0]


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


# The rooms and their furniture


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_furniture(room):
    missing = [f for f in ("__init__.py", "spec.py", "pytorch.py", "checks.py") if not (PACKAGE / room / f).is_file()]
    assert not missing, f"reformer_ref/{room} lacks {', '.join(missing)}"


def test_specs_and_checks_import_without_torch():
    """In a process where importing torch fails, as in a NumPy-only class room."""
    wanted = [m for m, path in MODULES.items() if path.name in ("spec.py", "checks.py", "options.py", "config.py")]
    code = "import sys, importlib\nsys.modules['torch'] = None\nfor m in sys.argv[1:]: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-c", code, *wanted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wanted
    assert done.returncode == 0, done.stderr


def test_package_imports_neither_torch_nor_numpy():
    code = "import sys, reformer_ref; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Spec and PyTorch: the same names, arguments, defaults and order


def twins(room):
    return public(furniture(room, "spec.py")), public(furniture(room, "pytorch.py"))


def signature(function):
    """Positional arguments in order, and the defaults of all arguments, under the names of
    pytorch.py.
    """
    arguments = function.args
    positional = [SAME_ARGUMENT.get(a.arg, a.arg) for a in arguments.posonlyargs + arguments.args]
    last = positional[len(positional) - len(arguments.defaults) :]
    defaults = {name: ast.unparse(value) for name, value in zip(last, arguments.defaults, strict=True)}
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        defaults[SAME_ARGUMENT.get(argument.arg, argument.arg)] = ast.unparse(value) if value else "(none)"
    return positional, defaults


def from_spec(node):
    return isinstance(node, ast.ImportFrom) and (node.module or "").endswith("spec")


@pytest.mark.parametrize("room", ROOMS)
def test_every_spec_function_has_a_pytorch_twin(room):
    spec, fast = twins(room)
    taken = {m.name for n in tree(furniture(room, "pytorch.py")).body if from_spec(n) for m in n.names}
    unexplained = {name for name in taken if (room, name) not in WRITTEN_ONCE}
    assert not unexplained, f"{room}/pytorch.py takes {unexplained} from a spec instead of writing its own"
    functions = [n for n, node in spec.items() if isinstance(node, ast.FunctionDef) and not n.endswith("_vjp")]
    alone = [n for n in functions if n not in fast.keys() | taken and (room, n) not in SPEC_ONLY]
    assert not alone, f"{room}/pytorch.py lacks {', '.join(alone)}, which {room}/spec.py defines"
    assert functions, f"{room}/spec.py defines no public function"


@pytest.mark.parametrize("room", ROOMS)
def test_twins_take_the_same_arguments(room):
    spec, fast = twins(room)
    for name in spec:
        if not (isinstance(spec[name], ast.FunctionDef) and isinstance(fast.get(name), ast.FunctionDef)):
            continue
        (arguments, defaults), (fast_arguments, fast_defaults) = (signature(spec[name]), signature(fast[name]))
        where = f"{room}.{name}: spec.py has ({', '.join(arguments)}), pytorch.py ({', '.join(fast_arguments)})"
        assert fast_arguments[: len(arguments)] == arguments, where
        assert {k: fast_defaults.get(k) for k in defaults} == defaults, f"{room}.{name}: the defaults differ"
        extra = [a for a in fast_arguments[len(arguments) :] if a not in fast_defaults]
        assert not extra, f"{where}: an argument that only pytorch.py has needs a default"


@pytest.mark.parametrize("room", ROOMS)
def test_twins_stand_in_the_same_order(room):
    spec, fast = twins(room)
    assert [n for n in spec if n in fast] == [n for n in fast if n in spec]


def test_exceptions_are_still_needed():
    for room, name in WRITTEN_ONCE.keys() | SPEC_ONLY.keys():
        spec, fast = twins(room)
        assert name in spec, f"{room}/spec.py no longer defines {name}"
        assert name not in fast, f"{room}/pytorch.py now defines {name}"


# Imports point one way


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        return
    here = floor_of(module_name(path))
    up = [f"line {line}: {m}" for line, m in imports(path) if m.startswith("reformer_ref.") and floor_of(m) > here]
    assert not up, f"{name_of(path)} imports from a floor above: {up}"


def test_imports_have_no_circle():
    graph = {m: {t for _, t in imports(path) if t in MODULES and t != m} for m, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


def allowed(kind, room):
    """(other libraries, modules of this package) that a file of a room may import, as regular
    expressions.
    """
    shared = r"reformer_ref\.(validate|\w+\.options|\w+\.config)"
    return {
        "spec.py": (r"numpy|math|dataclasses|functools|itertools", rf"{shared}|reformer_ref\.\w+\.spec"),
        "checks.py": (r"numpy|math|dataclasses|functools|itertools", rf"{shared}|reformer_ref\.(compare|{room}\.spec)"),
    }[kind]


@pytest.mark.parametrize("kind", ["spec.py", "checks.py"])
@pytest.mark.parametrize("room", ROOMS)
def test_spec_and_checks_import_little(room, kind):
    path = furniture(room, kind)
    libraries, own = allowed(kind, room)
    wrong = [
        f"line {line}: {module}"
        for line, module in imports(path)
        if not re.fullmatch(own if module.startswith("reformer_ref") else libraries, module)
    ]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize("room", ROOMS)
def test_pytorch_imports_neither_numpy_nor_the_tests_of_it(room):
    """Nor a spec, but for the functions that are written once."""
    path = furniture(room, "pytorch.py")
    forbidden = r"numpy(\..*)?|matplotlib(\..*)?|reformer_ref\.(compare|bridge|\w+\.(checks|plots))"
    specs = {f"reformer_ref.{r}.spec" for r in ROOMS} - {f"reformer_ref.{r}.spec" for r, _ in WRITTEN_ONCE if r == room}
    wrong = [f"line {n}: {m}" for n, m in imports(path) if re.fullmatch(forbidden, m) or m in specs]
    assert not wrong, f"{name_of(path)} imports {wrong}"


# Short enough to read, explained, and well behaved


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name in MAX_LINES], ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES[path.name]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_fit_on_a_screen(path):
    for function in all_functions(path):
        first = function.body[0]
        described = ast.get_docstring(function) is not None
        documentation = first.end_lineno - first.lineno + 1 if described else 0
        length = function.end_lineno - function.lineno + 1 - documentation
        assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}:{function.lineno} {function.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_things_are_documented(path):
    assert ast.get_docstring(tree(path)), f"{name_of(path)} has no docstring"
    bare = [name for name, node in public(path).items() if not ast.get_docstring(node)]
    assert not bare, f"{name_of(path)}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "checks.py"], ids=name_of)
def test_library_code_raises_and_never_asserts(path):
    lines = [n.lineno for n in ast.walk(tree(path)) if isinstance(n, ast.Assert)]
    assert not lines, f"{name_of(path)} asserts in lines {lines}; raise ValueError or TypeError"
    raised = [n.exc for n in ast.walk(tree(path)) if isinstance(n, ast.Raise) and n.exc is not None]
    names = [n for exc in raised for n in ast.walk(exc) if isinstance(n, ast.Name)]
    unfinished = [n.lineno for n in names if n.id == "NotImplementedError"]
    assert not unfinished, f"{name_of(path)} raises NotImplementedError in lines {unfinished}"


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("an unfinished place", r"\b(?:TO[D]O|FI[X]ME)\b"),
        ("a path of one machine", r"(?<![\w.~}])/(?:work|root|home|Users)\b"),
        (
            "a package registry's host",
            r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|npmjs\.)",
        ),
    ],
)
def test_files_are_finished_and_name_no_machine(what, pattern):
    found = [
        f"{name}:{number}"
        for name, text in tracked_files()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{what}: {', '.join(found[:20])}"
