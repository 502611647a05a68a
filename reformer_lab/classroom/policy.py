"""The honesty policy: what the code of a submission may do, decided from its syntax tree before anything runs.

A cell that breaks a rule is not run; whoever wrote it reads which line and why. The rules stop the known ways to marks
without work: reading expected values, patching what compares them, importing a solution. They are no sandbox against an
attacker: code of unknown origin belongs in a container as well.
"""

import ast
import builtins
import importlib
import importlib.util
import symtable
import warnings
from pathlib import Path
from types import ModuleType

MOST_CHARACTERS = 50_000  # of one cell

# Modules that may be imported, and which of their names may be used (None: every public one that is no other module).
MODULES = {
    "numpy": None,
    "numpy.fft": None,
    "numpy.linalg": None,
    "numpy.random": None,
    "numpy.lib": {"stride_tricks"},
    "numpy.lib.stride_tricks": {"sliding_window_view"},
    "math": None,
    "itertools": None,
    "functools": {"reduce", "partial", "cache", "lru_cache", "cmp_to_key"},
    "torch": None,
    "torch.autograd": {"grad"},
    "torch.fft": None,
    "torch.linalg": None,
    "torch.nn": None,
    "torch.nn.functional": None,
    "torch.special": None,
}
# Parts of names in these modules that read or write files, build code, or reach below the arrays.
REFUSED_SUBSTRINGS = (
    "load", "save", "file", "memmap", "genfromtxt", "datasource", "fromregex", "import", "compil", "script", "parse",
    "interpreter", "errcall", "frompyfunc", "storage", "show_config", "package", "dlpack",
)  # fmt: skip
REFUSED_NAMES = {"test", "info", "ops", "classes", "record", "recarray", "matrix", "asmatrix", "bmat", "frombuffer"}
# Attributes of any object that lead to frames, code, files or memory, or read attributes by their names in a text.
ATTRIBUTES = {
    "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "f_lineno", "f_trace", "gi_frame", "gi_code",
    "gi_yieldfrom", "cr_frame", "cr_code", "cr_await", "cr_origin", "ag_frame", "ag_code", "ag_await", "tb_frame",
    "tb_next", "tb_lasti", "tb_lineno", "func_globals", "mro", "format", "format_map", "tofile", "dump", "dumps",
    "ctypes", "data_ptr", "savefig", "share_memory_", "as_subclass", "cache_parameters",
    "cffi", "capsule", "from_file", "from_buffer", "storage", "typed_storage", "untyped_storage",
}  # fmt: skip
CALLABLES = {
    "abs", "all", "any", "bin", "bool", "bytes", "callable", "chr", "complex", "dict", "divmod", "enumerate", "filter",
    "float", "frozenset", "hash", "id", "int", "isinstance", "iter", "len", "list", "map", "max", "min", "next", "ord",
    "pow", "print", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip",
    "object", "Ellipsis",
}  # fmt: skip
STOPS = {"BaseException", "BaseExceptionGroup", "KeyboardInterrupt", "SystemExit", "GeneratorExit"}
SHELL = {"In", "Out", "exit", "quit", "get_ipython", "display"}  # what the notebook's shell adds
TESTS = {"grade", "written"}  # not even to be called: only the tests do
PROTECTED = frozenset({"check", "grade", "inputs", "written", "VARIANT", "Variant"})
RESERVED = "belongs to the assignment and cannot be bound again"
ALLOWED = "numpy, math, itertools, functools and torch"


def broken_rules(source, protected=PROTECTED, others=()):
    """Why a cell may not run: a list of sentences, each with its line; empty if it may.

    source: a cell that a student wrote. protected: names that the tests read, which it may not bind. others: the other
    code cells of the notebook, for the modules that they import. Never raises: what cannot be read is refused.
    """
    if len(source) > MOST_CHARACTERS:
        return [f"the cell has {len(source):,} characters; at most {MOST_CHARACTERS:,} are read"]
    try:
        tree = ast.parse(source)
        table = symtable.symtable(source, "cell", "exec")
        rules = _Rules(_modules([source, *others]), protected)
        rules.visit(tree)
        rules.bindings(table, tree)
    except SyntaxError as error:
        return [
            f"line {error.lineno}: Python cannot read this: {error.msg} "
            "(magics such as %time and shell lines with ! are not run)"
        ]
    except (ValueError, RecursionError, MemoryError) as error:
        return [f"Python cannot read this cell: {type(error).__name__}: {str(error)[:200]}"]
    return [f"line {line}: {reason}" for line, reason in sorted(rules.violations)]


def protected_names(tests, stubs):
    """The names that test cells read, apart from those that the answer cells (``stubs``) bind for them."""
    read = {node.id for source in tests for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    bound = {symbol.get_name() for source in stubs for symbol in _bound(symtable.symtable(source, "cell", "exec"))}
    return PROTECTED | (read - bound)


def _bound(table):
    return [symbol for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()]


def _modules(sources):
    """{name: the dotted names of the modules it stands for} of all imports, wherever in a cell they are."""
    paths = {}
    for source in sources:
        try:
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # such a cell does not run
        for node in nodes:
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                if isinstance(node, ast.Import):
                    path = alias.name if alias.asname else name
                else:
                    path = f"{node.module}.{alias.name}"
                    if not _is_module(path):
                        continue
                paths.setdefault(name, set()).add(path)
    return paths


def _is_module(path):
    package, *inner = path.split(".")
    if package in ("numpy", "torch"):  # some of their modules, such as np.random, are not found by their files
        return _hides_module(*path.rsplit(".", 1))
    spec = importlib.util.find_spec(package)
    places = [Path(place, *inner) for place in (spec and spec.submodule_search_locations) or ()]
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


class _Rules(ast.NodeVisitor):
    """Walks a cell's tree and notes (line, reason) of what is not allowed."""

    def __init__(self, modules, protected):
        self.modules = {name: " or ".join(sorted(paths)) for name, paths in modules.items()}
        self.protected, self.violations, self.depth = protected, set(), 0

    def refuse(self, node, reason):
        self.violations.add((getattr(node, "lineno", 1), reason))

    # What is bound

    def bindings(self, table, tree):
        """Names that the tests read must not be bound by the cell."""
        for symbol in _bound(table):
            name = symbol.get_name()
            if name in PROTECTED or (name in self.protected and not (symbol.is_imported() and name in self.modules)):
                self.refuse(_where(tree, name), f"`{name}` {RESERVED}")

    def visit_NamedExpr(self, node):
        # Inside a comprehension it binds a name outside, which the symbol table leaves out.
        if node.target.id in self.protected and not self.depth:
            self.refuse(node, f"`{node.target.id}` {RESERVED}")
        self.generic_visit(node)

    def name(self, node, name, stored=True):
        if name.startswith("_") and not (stored and name == "_"):
            self.refuse(node, f"names that begin with an underscore, such as `{name}`, are not allowed")

    def visit_Name(self, node):
        self.name(node, node.id, isinstance(node.ctx, ast.Store))
        if isinstance(node.ctx, ast.Load):
            self.read(node, node.id)
        elif node.id in self.modules:
            self.refuse(node, f"`{node.id}` is a module and cannot be bound again")

    def read(self, node, name):
        if name in self.modules:
            self.refuse(node, f"the module `{name}` can only be used as `{name}.something`")
        elif name in TESTS:
            self.refuse(node, f"`{name}` is for the tests alone")
        elif name == "check":
            self.refuse(node, "`check` can only be called, in a line outside of all functions")
        elif name in SHELL or name in STOPS:
            self.refuse(node, f"`{name}` is not allowed")
        elif hasattr(builtins, name) and name not in CALLABLES and not _is_error(name):
            self.refuse(node, f"`{name}` is not allowed (if it is a variable of yours, give it another name)")

    def visit_Call(self, node):
        if not (isinstance(node.func, ast.Name) and node.func.id == "check" and not self.depth):
            self.visit(node.func)
        for child in [*node.args, *node.keywords]:
            self.visit(child)

    def visit_arg(self, node):
        self.name(node, node.arg)
        if node.arg in self.modules:
            self.refuse(node, f"`{node.arg}` is a module and cannot be an argument")
        self.generic_visit(node)

    def visit_keyword(self, node):
        self.name(node, node.arg or "a")
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.name(node, node.name)
        for child in [*node.decorator_list, node.args, node.returns]:
            if child is not None:
                self.visit(child)
        self.depth += 1
        for child in node.body:
            self.visit(child)
        self.depth -= 1

    def visit_Lambda(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    # Modules and attributes

    def visit_Import(self, node):
        for alias in node.names:
            self.importing(node, alias.name)
            self.binding(node, alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node):
        if node.level or node.module is None:
            self.refuse(node, f"only {ALLOWED} may be imported")
            return
        for alias in node.names:
            self.binding(node, alias.asname or alias.name)
            if alias.name == "*":
                self.refuse(node, f"name what you import from `{node.module}`, instead of `*`")
            elif f"{node.module}.{alias.name}" not in MODULES and self.importing(node, node.module):
                self.member(node, node.module, alias.name)

    def importing(self, node, path):
        if path in MODULES:
            return True
        self.refuse(node, f"`{path}` cannot be imported; only {ALLOWED} may be")
        return False

    def binding(self, node, name):
        self.name(node, name)
        if " or " in self.modules.get(name, ""):
            self.refuse(node, f"`{name}` stands for {self.modules[name]} in this notebook")

    def visit_Attribute(self, node):
        attribute = node.attr
        if attribute.startswith("_") or attribute in ATTRIBUTES:
            hint = "; an f-string does the same" if attribute in ("format", "format_map") else ""
            self.refuse(node, f"the attribute `.{attribute}` is not allowed{hint}")
        if not isinstance(node.ctx, ast.Load) and attribute not in ("grad", "requires_grad"):
            self.refuse(node, f"attributes such as `.{attribute}` cannot be assigned or deleted")
        path = self.module_of(node.value)
        if path is None:
            self.visit(node.value)
        elif self.module_of(node) is not None:
            self.refuse(node, f"the module `{path}.{attribute}` can only be used as `….{attribute}.something`")
        else:
            self.member(node, path, attribute)
        if path is not None and not isinstance(node.ctx, ast.Load):
            self.refuse(node, f"nothing in the module `{path}` can be changed")

    def module_of(self, node):
        """The dotted name of the module that an expression stands for, or None."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id)
        if isinstance(node, ast.Attribute) and (path := self.module_of(node.value)) is not None:
            path = f"{path}.{node.attr}"
            return path if path in MODULES else None
        return None

    def member(self, node, path, name):
        """Check the use of ``path.name``, where ``path`` is a module."""
        if path not in MODULES:
            self.refuse(node, f"the module `{path}` is not allowed")
        elif name.startswith("_"):
            self.refuse(node, f"names that begin with an underscore, such as `{name}`, are not allowed")
        elif MODULES[path] is not None:
            if name not in MODULES[path]:
                self.refuse(node, f"of `{path}`, only {', '.join(sorted(MODULES[path]))} can be used")
        elif _reaches_outside(name) or _hides_module(path, name):
            self.refuse(node, f"`{path}.{name}` is not allowed")

    # Statements and patterns

    def visit_ClassDef(self, node):
        self.refuse(node, "classes are not needed here and not allowed")

    def visit_Global(self, node):
        self.refuse(node, "`global` is not allowed: give a function what it needs as arguments")

    def visit_ExceptHandler(self, node):
        if node.type is None:
            self.refuse(node, "say which errors you catch: `except ValueError:`")
        if node.name:
            self.name(node, node.name)
        self.generic_visit(node)

    def visit_Try(self, node):
        for child in node.finalbody:
            if any(isinstance(n, (ast.Return, ast.Break, ast.Continue)) for n in ast.walk(child)):
                self.refuse(child, "`finally` must not swallow errors with return, break or continue")
        self.generic_visit(node)

    visit_TryStar = visit_Try

    def visit_MatchClass(self, node):
        for name in node.kwd_attrs:
            if name.startswith("_") or name in ATTRIBUTES:
                self.refuse(node, f"the attribute `.{name}` is not allowed")
        self.generic_visit(node)

    def visit_Await(self, node):
        self.refuse(node, "async code is not allowed")

    visit_AsyncFunctionDef = visit_AsyncFor = visit_AsyncWith = visit_Await


def _where(tree, name):
    """The first node of a tree that binds a name, for its line."""
    for node in ast.walk(tree):
        bound = [getattr(node, key, None) for key in ("name", "rest")]
        bound += [node.id] if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) else []
        bound += [a.asname or a.name for a in getattr(node, "names", []) if isinstance(a, ast.alias)]
        if name in bound:
            return node
    return tree


def _is_error(name):
    kind = getattr(builtins, name)
    return isinstance(kind, type) and issubclass(kind, Exception)


def _reaches_outside(name):
    return name in REFUSED_NAMES or any(text in name.lower() for text in REFUSED_SUBSTRINGS)


def _hides_module(path, name):
    """Whether ``path.name`` is a module; NumPy and PyTorch themselves are asked, for releases differ."""
    if path in ("math", "itertools"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return isinstance(getattr(importlib.import_module(path), name, None), ModuleType)
        except ImportError:
            return True
