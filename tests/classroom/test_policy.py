"""The honesty policy: what honest students write runs, and every known way around the work is refused with a reason."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reformer_lab.classroom.policy import MOST_CHARACTERS, broken_rules, protected_names
from reformer_lab.classroom.rehearsal import CHEATS

NP = "import numpy as np\n"
HONEST = {
    "loops and sorting": NP
    + "def f(x):\n    for _ in range(3):\n        x = np.sort(x, axis=-1, kind='stable')\n    return x",
    "linear algebra": NP + "from numpy import linalg as la\nla.norm(np.linalg.inv(np.eye(3)))",
    "windows": NP + "np.lib.stride_tricks.sliding_window_view(np.arange(5), 2)",
    "generators": NP + "rng = np.random.default_rng(0)\nrng.normal(size=3)",
    "names of builtins inside a function": "def f(hash, id):\n    sum = hash + id\n    return sum",
    "errors": "try:\n    x = 1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('no') from error",
    "trying a function out": "check('A1.hash', hash_vectors, VARIANT)\nx, r = inputs('A1.hash', 1, VARIANT)",
    "f-strings": "x = 3\nprint(f'{x!r:>4} {x:.3f}')",
    "functools": "import functools\nfrom functools import reduce\nf = functools.cache(lambda x: reduce(max, [x]))",
    "gradients": "import torch\nfrom torch import nn\nimport torch.nn.functional as F\nw = torch.ones(3)\n"
    "with torch.no_grad():\n    w.grad = None\nF.gelu(nn.Linear(3, 3)(w))\ntorch.autograd.grad(w.sum(), w)",
    "patterns": "match (1, 2):\n    case (1, _):\n        x = 1",
    "nothing": "",
}
REFUSED = {
    "module": [
        "import os",
        "from os import path",
        "import numpy.testing",
        "from numpy import testing as t",
        "from . import x",
    ],
    "module by another name": ["def f():\n    return b.load('x')\nimport numpy as b", NP + "q = np", NP + "[np]"],
    "two modules of one name": ["import numpy as m\nimport math as m", NP + "import math as np\nnp.load('x')"],
    "star": ["from numpy import *"],
    "files": [NP + f"np.{name}('x')" for name in ("load", "loadtxt", "genfromtxt", "fromfile", "memmap", "savez")]
    + ["import torch\ntorch.load('x')", "open('x')", NP + "np.ones(3).tofile('x')", "fig.savefig('x')"],
    "modules inside modules": [
        NP + "np.lib.format",
        NP + "np.testing.x",
        "import torch\ntorch.os.system('ls')",
        "import torch.nn.functional as F\nF.importlib",
        "import torch\ntorch.hub.load",
    ],
    "storage": ["t.untyped_storage()", "import torch\ntorch.UntypedStorage", "rng.bit_generator.cffi"],
    "other languages": ["import torch\ntorch.CompilationUnit('')", "import torch\ntorch.jit.script"],
    "memory": [NP + "np.lib.stride_tricks.as_strided", NP + "np.ones(1).ctypes", NP + "np.frombuffer(b'')"],
    "code from text": [
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'exec')",
        "__import__('os')",
        "getattr(x, 'y')",
        "setattr(x, 'y', 1)",
        "vars()",
        "globals()",
        "locals()",
        "dir()",
        "type('A', (), {})",
    ],
    "underscores": [
        "().__class__",
        "__",
        "_",
        "print(_)",
        "f(__x=1)",
        "x._y",
        "def __f(): pass",
        "def f(_x): pass",
        "try:\n    x\nexcept ValueError as _e:\n    pass",
    ],
    "underscores in a pattern": ["match f:\n    case object(__globals__=g):\n        pass"],
    "attributes by text": ["'{0.__class__}'.format(3)", "'{x.__class__}'.format_map(d)"],
    "frames": ["g.gi_frame", "e.tb_frame.f_back", "c.cr_frame", "f.f_locals"],
    "assigned attributes": [
        NP + "np.x = 1",
        NP + "np.random.x = 1",
        "f.x = 1",
        "del f.x",
        NP + "for np.x in []:\n    pass",
    ],
    "functools": ["from functools import wraps", "import functools\nfunctools.update_wrapper(1, 2)"],
    "rebound": [
        "check = 3",
        "def check():\n    pass",
        "del check",
        "[check := 1 for i in []]",
        "for VARIANT in []:\n    pass",
        "import math as VARIANT",
        "from math import pi as check",
        "with x as written:\n    pass",
        NP + "np = 3",
    ],
    "tests": [
        "grade('A1.hash', f, VARIANT)",
        "written",
        "c = check",
        "def f():\n    check(1)",
        "g = lambda: check(1)",
        "def f(a=check):\n    pass",
        "list(map(check, x))",
    ],
    "classes": ["class A:\n    pass"],
    "global": ["def f():\n    global check\n    check = 1"],
    "async": ["async def f():\n    pass", "await x"],
    "swallowing": [
        "try:\n    x\nexcept:\n    pass",
        "try:\n    x\nexcept BaseException:\n    pass",
        "while True:\n    try:\n        x\n    finally:\n        continue",
        "def f():\n    try:\n        x\n    finally:\n        return 1",
    ],
    "leaving": ["exit()", "raise SystemExit", "quit"],
    "shell": ["%time x", "!ls", "%%bash\nls", "x?", "In[0]", "Out", "get_ipython()", "display(1)"],
    "unreadable": ["def", "\0", "(" * 500, "-" * 40_000 + "1", "x = '" + "a" * MOST_CHARACTERS + "'", "1" * 5000],
    "other alphabets": ["ｏpen('x')", "x.＿_class__"],
}


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_honest_code_runs(source):
    assert broken_rules(source) == []


@pytest.mark.parametrize(
    ("kind", "source"), [(kind, source) for kind, sources in REFUSED.items() for source in sources]
)
def test_tricks_are_refused_with_a_reason(kind, source):
    reasons = broken_rules(source)
    assert reasons, f"{kind}: {source!r} may run"
    assert all(15 < len(reason) < 400 for reason in reasons)


def test_the_line_is_named():
    assert broken_rules("x = 1\n\nimport os")[0].startswith("line 3: `os` cannot be imported")


def test_modules_of_other_cells_are_known():
    assert broken_rules("banana.load('x')", others=["import numpy as banana"])
    assert broken_rules("plots.np", others=["from reformer_lab.plots import hashing as plots"])
    assert broken_rules(
        "plots.strips()", others=["from reformer_lab.plots import hashing as plots", "import math as plots"]
    )
    assert not broken_rules("banana.load('x')"), "without that import it is a name like any other"


def test_names_that_tests_read_are_protected():
    protected = protected_names(
        ["check('A1.hash', hash_vectors, VARIANT)\nassert len(np.ones(3)) == 3"], ["def hash_vectors(): ..."]
    )
    assert {"check", "VARIANT", "len", "np"} <= protected
    assert "hash_vectors" not in protected
    assert broken_rules("def len(x):\n    return 3", protected)
    assert not broken_rules("def hash_vectors(x):\n    return 3", protected)
    assert not broken_rules("import numpy as np", protected, others=["import numpy as np"])


@given(st.text(max_size=200))
def test_any_text_is_judged_without_an_error(source):
    assert all(isinstance(reason, str) for reason in broken_rules(source))


def test_cheats_are_well_formed():
    cheats = json.loads(CHEATS.read_text(encoding="utf-8"))
    assert len({cheat["name"] for cheat in cheats}) == len(cheats) >= 30
    for cheat in cheats:
        assert cheat["why"]
        assert {"name", "why"} < set(cheat) <= {
            "name", "why", "slow", "answer", "first", "tests", "delete", "metadata", "text", "files"
        }  # fmt: skip


def test_nothing_is_imported_that_is_not_needed():
    code = "import sys, reformer_lab.classroom.policy, reformer_lab.classroom.command\n"
    code += "early = {'torch'} & set(sys.modules)\n"
    code += "import reformer_lab.classroom.grading\n"
    code += "print(early | {'nbgrader', 'matplotlib', 'nbformat'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
