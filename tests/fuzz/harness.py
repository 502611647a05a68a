"""Fuzzing: every public function, called with what no caller should give, returns or says what is wrong.

A *target* is a public function together with a recipe for a valid call. A *case* draws a valid call and replaces
none, one or two of its arguments by something hostile. Allowed are

- a result: floats in it are finite if all that went in was; where a gradient can be asked for, it can be computed;
- a ``ValueError`` or ``TypeError`` that a ``raise`` of these packages raised and whose message names an argument.

Everything else is a fault: other exceptions, the inner messages of NumPy and PyTorch, warnings of our own code, a
result that takes long.

    DOOR = Registry(reformer_ref)

    @DOOR.add("hash_vectors")                                   # the public name; "Decoder.step" for a method
    def _(draw):                                                # draw(strategy) -> value
        n_hashes, d = draw(sizes(3)), draw(sizes(4))
        return {"x": array(draw, *ROWS, d), "rotations": array(draw, n_hashes, d, 3), "n_buckets": 6}

    @pytest.mark.parametrize("target", DOOR.targets, ids=str)
    def test_hostile_arguments(target, counts):                 # counts: the fixture of conftest.py
        fuzz(target, counts)

Arrays of a recipe become tensors, a NumPy generator becomes one of PyTorch. Options of ``add``:

- ``call``: what is called, where it is not the public thing itself (a method of an object, ``*args``);
- ``tensors=False``: arrays stay arrays;
- ``keep``: names of arguments that are never replaced;
- ``hostile``: {argument: [values]} to be tried besides the general ones, for an argument of a special kind;
- ``words``: further words of which a message may hold one instead of an argument's name (field names, for example);
- ``also``: further exceptions that count as refused, such as AssertionError for a comparison;
- ``check(result, **kwargs)``: asserts what is known of a result (its shape), called for valid calls only;
- ``finite=False``: results of finite input may be infinite or NaN.

Whatever a call may change or use up is made inside the recipe. Sizes are small, so that a case takes milliseconds.

Size of a run: a few cases per target, always the same ones; with REFORMER_FUZZ=nightly (or a number of cases per
target) many, from the seed REFORMER_FUZZ_SEED or a random one, which the summary prints.
"""

import linecache
import math
import os
import random
import signal
import traceback
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter
from pathlib import Path

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "reformer_ref", ROOT / "reformer_lab")
SIZE = os.environ.get("REFORMER_FUZZ", "")
CASES = {"": 6, "nightly": 160}[SIZE] if not SIZE.isdigit() else int(SIZE)  # per target
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(random.SystemRandom().random()))  # the workers of one run share it
SEED = int(os.environ.get("REFORMER_FUZZ_SEED", zlib.crc32(RUN.encode()) if SIZE else 0))
SECONDS = 5  # of processor time that one case may take
LONGEST_MESSAGE = 1000


@dataclass(frozen=True)
class Target:
    """One function under test; ``str`` of it is its name."""

    name: str
    call: object
    valid: object
    as_tensors: bool
    keep: tuple = ()
    hostile: dict = field(default_factory=dict)
    words: tuple = ()
    also: tuple = ()
    check: object = None
    finite: bool = True

    def __str__(self):
        return self.name


class Registry:
    """The targets of one test file. module: the one whose attributes `add` names."""

    def __init__(self, module):
        self.module, self.targets = module, []

    def add(self, name, call=None, tensors=True, **options):
        """Decorates ``valid(draw) -> kwargs``; see the top of this file."""
        if call is None:
            call = attrgetter(name)(self.module)

        def register(valid):
            self.targets.append(Target(name, call, valid, tensors, **options))
            return valid

        return register


# What a valid call is made of


def sizes(largest, smallest=1):
    """A strategy for a length, 1 first."""
    return st.integers(smallest, largest)


def lead(draw):
    """Leading "…" dimensions: none, one or two."""
    return draw(st.sampled_from([(), (2,), (1,), (2, 1)]))


def array(draw, *shape, dtype=np.float64):
    """Normal numbers in one of several layouts in memory, the plain one first."""
    x = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(dtype)
    return draw(st.sampled_from([lambda a: a, np.asfortranarray, _strided, _reversed]))(x)


def integers(draw, low, high, *shape, dtype=np.int64):
    """Integers from [low, high)."""
    return np.random.default_rng(draw(st.integers(0, 99))).integers(low, high, shape).astype(dtype)


def mask(draw, *shape):
    """A padding mask of ``shape``, or None; it may hide everything."""
    kept = draw(st.sampled_from([None, 0.7, 1.0, 0.0]))
    return None if kept is None else np.random.default_rng(draw(st.integers(0, 99))).random(shape) < kept


def tensor(x, dtype=torch.float64, requires_grad=False):
    """The tensor of an array with the same numbers, and the same strides as far as PyTorch knows
    them.
    """
    t = torch.from_numpy(x if all(s >= 0 for s in x.strides) else x.copy())
    return t.to(dtype).requires_grad_(requires_grad) if t.is_floating_point() else t


def _strided(x):
    return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x


def _reversed(x):
    return np.flip(np.flip(x, 0).copy(), 0) if x.ndim else x


def _to_tensors(draw, kwargs):
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    needs = draw(st.booleans())

    def convert(value):
        if isinstance(value, np.ndarray):
            return tensor(value, dtype, needs)
        if isinstance(value, np.random.Generator):
            return torch.Generator().manual_seed(0)
        return type(value)(map(convert, value)) if type(value) in (list, tuple) else value

    return {name: convert(value) for name, value in kwargs.items()}


# What a hostile call is made of


NUMBERS = [0, -1, 1, 2, 3, 7, 2**40, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30), 10**5000]
FLOATS = [0.0, -0.0, 0.5, 1.0, -1.0, 2.5, 1e-320, 1e5, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf]
JUNK = [
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: "",
    lambda: "rsqrt_d",
    lambda: "nonsense",
    lambda: "x" * 100_000,
    lambda: "\ud800\0",
    lambda: b"",
    lambda: b"\0\xff",
    list,
    lambda: (),
    dict,
    lambda: set(),
    lambda: [[]],
    lambda: [None],
    lambda: [[1.0, 2.0]],
    lambda: [[1.0], [2.0, 3.0]],
    lambda: list(range(10_000)),
    lambda: (2, 4),
    lambda: (2, 3),
    lambda: (2,) * 64,
    lambda: {"a": 1},
    lambda: 1j,
    lambda: Fraction(1, 3),
    lambda: Fraction(10**400),
    lambda: Decimal("0.5"),
    lambda: Decimal("sNaN"),
    lambda: Decimal("1e999999"),
    lambda: object(),
    lambda: int,
    lambda: len,
    lambda: lambda *args: None,
    lambda: range(3),
    lambda: iter([1, 2]),
    lambda: Broken(),
    lambda: np.float64(1.0),
    lambda: np.float32(math.nan),
    lambda: np.int64(3),
    lambda: np.uint8(3),
    lambda: np.bool_(True),
    lambda: np.array(1.0),
    lambda: np.array(2),
    lambda: np.zeros(0),
    lambda: np.zeros((0, 3)),
    lambda: np.ones((2, 3)),
    lambda: np.ones((1,) * 40),
    lambda: np.arange(4),
    lambda: np.ones((2, 3), dtype=bool),
    lambda: np.array(["a", "b"]),
    lambda: np.array([None, 1], dtype=object),
    lambda: np.array(["2001-01-01"], dtype="datetime64[D]"),
    lambda: np.zeros(2, dtype=[("a", float)]),
    lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    lambda: np.random.default_rng(0),
    lambda: np.random.RandomState(0),
    lambda: np.float64,
    lambda: torch.tensor(1.0),
    lambda: torch.tensor(2),
    lambda: torch.tensor(True),
    lambda: torch.zeros(0),
    lambda: torch.zeros(0, 3),
    lambda: torch.ones(2, 3),
    lambda: torch.ones(2, 3, requires_grad=True),
    lambda: torch.ones((1,) * 40),
    lambda: torch.arange(4),
    lambda: torch.ones(2, 3, device="meta"),
    lambda: torch.eye(3).to_sparse(),
    lambda: _quietly(lambda: torch.eye(3).to_sparse_csr()),
    lambda: _quietly(lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])),
    lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged),
    lambda: torch.ones(2, 3, dtype=torch.complex64),
    lambda: _quietly(lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8)),
    lambda: torch.nn.Parameter(torch.ones(2, 3)),
    lambda: torch.Generator(),
    lambda: torch.device("cpu"),
    lambda: torch.device("meta"),
    lambda: torch.device("cuda:7"),
    lambda: torch.float32,
    lambda: torch.int64,
    lambda: torch.nn.Linear(2, 2),
    lambda: torch.nn.Identity(),
]


class Broken:
    """Every way in which others look at it fails."""

    def __len__(self):
        raise RuntimeError("no length")

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array")

    def __iter__(self):
        raise RuntimeError("no items")

    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


def hostile(draw, value, extra=()):
    """Something else in the place of ``value``: a near miss, or anything. extra: functions that
    make candidates.
    """
    near = list(extra)
    if isinstance(value, np.ndarray):
        near += [lambda f=f: f(value) for f in ARRAY_CHANGES]
    elif isinstance(value, torch.Tensor):
        near += [lambda f=f: f(value) for f in TENSOR_CHANGES]
    elif isinstance(value, (list, tuple)) and value:
        near += [lambda: value[:-1], lambda: [*value, value[-1]], lambda: [*value, None], lambda: iter(value)]
        near += [lambda: [hostile(draw, value[0]), *value[1:]]] * 3
        near += [lambda: type(value)((*value[:-1], hostile(draw, value[-1])))] * 3
    elif isinstance(value, str):
        near += [lambda: value.upper(), lambda: value + "\0", lambda: value.encode(), lambda: [value]]
    elif isinstance(value, (bool, int)):
        near += [lambda: float(value), lambda: np.int64(value), lambda: str(value), lambda: [value], lambda: -value]
        near += [lambda: np.array(value), lambda: torch.tensor(value)]
    numbers = [lambda n=n: n for n in (*NUMBERS, *FLOATS)]
    near += numbers if isinstance(value, (bool, int, float)) else []
    kind = draw(st.integers(0, 3))
    makers = near if near and kind else numbers if kind == 1 else JUNK
    # An index: Hypothesis prints what it draws, and a number of 5,000 digits cannot be printed.
    return makers[draw(st.integers(0, len(makers) - 1))]()


def _with(entry, where=-1):
    """The array or tensor with one entry changed, as far as its dtype can hold it."""

    def change(x):
        if isinstance(x, torch.Tensor):
            y = x.detach().clone(memory_format=torch.contiguous_format)
        else:
            y = np.array(x, order="C")
        if math.prod(y.shape) == 0 or not _fits(entry, y.dtype):
            return y
        y.reshape(-1)[where] = entry
        return y

    return change


def _fits(entry, dtype):
    is_torch = isinstance(dtype, torch.dtype)
    if (dtype.is_floating_point or dtype.is_complex) if is_torch else dtype.kind in "fc":
        return math.isfinite(entry) is False or abs(entry) <= (torch.finfo(dtype) if is_torch else np.finfo(dtype)).max
    if dtype in (torch.bool, np.bool_) or not isinstance(entry, int):
        return False
    info = torch.iinfo(dtype) if is_torch else np.iinfo(dtype)
    return info.min <= entry <= info.max


ENTRIES = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e300, 1e-30, 6e4, 0, -1, -2, 2**15 - 1, 2**40, 2**63 - 1]
ENTRIES += [-(2**63), -100]
SHAPES = [
    lambda x: x[..., :0],
    lambda x: x[:0] if x.ndim else x,
    lambda x: x[..., :-1],
    lambda x: x[..., :1],
    lambda x: x[:-1] if x.ndim else x,
    lambda x: x[0] if x.ndim and x.shape[0] else x,
    lambda x: x[..., 0] if x.ndim and x.shape[-1] else x,
    lambda x: x[None],
    lambda x: x[..., None],
    lambda x: x[None, None, None],
    lambda x: x[(None,) * 20],
    lambda x: x.reshape(-1),
    lambda x: x.T if x.ndim == 2 else x,
    lambda x: x * 0,
]
ARRAY_CHANGES = [
    *SHAPES,
    *map(_with, ENTRIES),
    *(
        lambda x, d=d: _quietly(lambda: x.astype(d))
        for d in (bool, np.int8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.longdouble, ">f8", complex)
    ),
    lambda x: x.astype(object),
    lambda x: x.astype(str),
    lambda x: x.tolist(),
    lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim else x,
    lambda x: np.concatenate([x, x]) if x.ndim else x,
    lambda x: np.ma.masked_array(x, x == x),
    lambda x: _quietly(lambda: np.asmatrix(x)) if x.ndim == 2 else x,
    lambda x: memoryview(np.ascontiguousarray(x)),
    lambda x: torch.from_numpy(np.array(x, order="C")),
    lambda x: torch.from_numpy(np.array(x, order="C")).double().requires_grad_(),
    lambda x: torch.from_numpy(np.array(x, order="C")).bfloat16(),
    lambda x: torch.from_numpy(np.array(x, order="C")).to("meta"),
]
TENSOR_CHANGES = [
    *(lambda x, f=f: f(x.detach()) for f in SHAPES if f is not SHAPES[-2]),
    *map(_with, ENTRIES),
    *(
        lambda x, d=d: x.detach().to(d)
        for d in (
            *(torch.bool, torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint16, torch.uint64),
            *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64),
        )
    ),
    lambda x: x.detach().float().numpy(),
    lambda x: x.detach().tolist(),
    lambda x: x.detach()[:1].expand(x.shape) if x.ndim else x,
    lambda x: torch.cat([x, x]).detach() if x.ndim else x,
    lambda x: x.detach().to("meta"),
    lambda x: x.detach().to_sparse() if x.ndim else x,
    lambda x: _quietly(lambda: torch.nested.nested_tensor([x.detach()])),
    lambda x: torch.nested.nested_tensor([x.detach()], layout=torch.jagged) if x.ndim else x,
    lambda x: torch.nn.Parameter(x.detach().float()),
    lambda x: x.detach().transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x,
    lambda x: torch._neg_view(x.detach()) if x.is_floating_point() else x,
    lambda x: torch.view_as_complex(torch.stack([x.detach()] * 2, -1).float()).conj().imag,
]


def _quietly(fn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fn()


# One case, one target


class Fault(AssertionError):
    """The function did something that is neither a result nor a refusal."""


def fuzz(target, counts, replacements=(1, 1, 1, 0, 2)):
    """Try ``target``; ``counts`` (a dict) receives how many cases were accepted and refused.

    replacements: how many arguments are replaced by something hostile, one of these numbers in each case.
    """
    counts |= {"target": target.name, "seed": SEED, "accepted": 0, "refused": 0}

    @hypothesis.seed(SEED + zlib.crc32(target.name.encode()))
    @hypothesis.settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def cases(data):
        draw = data.draw
        kwargs = target.valid(draw)
        kwargs = _to_tensors(draw, kwargs) if target.as_tensors else kwargs
        replaceable = [name for name in kwargs if name not in target.keep]
        how_many = draw(st.sampled_from(replacements))
        replaced = draw(st.permutations(replaceable))[:how_many]
        for name in replaced:
            extra = [lambda v=v: v for v in target.hostile.get(name, ())]
            kwargs[name] = hostile(draw, kwargs[name], extra)
        counts[run_case(target, kwargs, replaced)] += 1

    cases()


def run_case(target, kwargs, replaced=()):
    """ "accepted" or "refused" for one call; Fault if it is neither. replaced: names of the hostile
    arguments.
    """
    given_as = {name: _short(value) for name, value in kwargs.items()}
    described = f"{target.name} with hostile {', '.join(replaced) or 'nothing'}\n" + "\n".join(
        f"    {name} = {value}" for name, value in given_as.items()
    )
    harmless = _ordinary(list(kwargs.values()))
    try:
        with _limit(), warnings.catch_warnings():
            warnings.filterwarnings("error", module=r"reformer_(ref|lab)(\..*)?")
            result = target.call(**kwargs)
            gradients = _gradients(result, kwargs)
    except hypothesis.errors.HypothesisException:
        raise
    except (ValueError, TypeError, *target.also) as error:
        if not _of_the_caller(error):
            _require_clear(error, target, kwargs, described)
        if not replaced:
            raise Fault(f"a valid call was refused: {described}\n{error}") from error
        return "refused"
    except BaseException as error:
        if _of_the_caller(error):
            return "refused"
        raise Fault(f"{type(error).__name__} from {described}\n{error}") from error
    if target.finite and harmless and not _finite([result, gradients]):
        raise Fault(f"finite input, but NaN or infinity in the result or its gradients: {described}")
    if not replaced and target.check is not None:
        target.check(result, **kwargs)
    return "accepted"


def _of_the_caller(error):
    """Whether a function that the test itself handed over (a layer of a block) failed: no fault of the package."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    known = [f for f in files if f.is_relative_to(ROOT / "tests") or _is_ours(f)]
    called_back = any(_is_ours(f) for f in known)
    return called_back and known[-1].is_relative_to(ROOT / "tests") and not isinstance(error, TimeoutError)


def _is_ours(file):
    return any(Path(file).is_relative_to(folder) for folder in PACKAGES)


def _require_clear(error, target, kwargs, described):
    """Fault unless ``error`` was raised by a ``raise`` of the package and names an argument."""
    if isinstance(error, target.also):
        return
    last = traceback.extract_tb(error.__traceback__)[-1]
    line, message = linecache.getline(last.filename, last.lineno).strip(), str(error)
    if not (_is_ours(last.filename) and line.startswith("raise ")):
        raise Fault(
            f"{type(error).__name__} of somebody else, in `{line}`, from {described}\n{message[:500]}"
        ) from error
    if len(message) > LONGEST_MESSAGE:
        raise Fault(f"a message of {len(message)} characters from {described}\n{message[:300]} …") from error
    if not any(word in message for word in (*kwargs, *target.words)):
        raise Fault(f"a message that names no argument from {described}\n{message}") from error


@contextmanager
def _limit():
    """TimeoutError after ``SECONDS`` of processor time, where signals exist."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _leaves(value):
    """Arrays, tensors and numbers inside of lists, tuples, dicts, modules and dataclasses."""
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    elif isinstance(value, torch.nn.Module):
        value = list(value.parameters())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (np.ndarray, np.generic, torch.Tensor, int, float)):
        yield value


def _readable(x):
    """The tensor or array as float64 numbers, or None where it has none that count."""
    if isinstance(x, torch.Tensor):
        if x.device.type == "meta" or not _plain(x) or not x.is_floating_point():
            return None
        return x.detach().cpu().double().resolve_neg().numpy()
    return np.asarray(x, dtype=np.float64) if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind == "f" else None


def _plain(x):
    return x.layout == torch.strided and not x.is_quantized and not x.is_nested


def _ordinary(values):
    """Whether all that goes in is finite and of usual size, so that what comes out must be finite."""
    for x in _leaves(values):
        if isinstance(x, (int, float)):
            if not abs(x) <= 1e6 or (isinstance(x, float) and 0 < abs(x) < 1e-9):
                return False
            continue
        numbers = _readable(x)
        if numbers is not None and numbers.size and not np.abs(numbers).max() <= 100:
            return False
    return True


def _finite(values):
    numbers = [_readable(x) for x in _leaves(values)]
    return all(np.isfinite(n).all() for n in numbers if n is not None)


def _gradients(result, kwargs):
    """Gradients of the sum of all floating results for the tensors that went in, if any can be
    asked for.
    """
    wanted = [x for x in _leaves(kwargs) if isinstance(x, torch.Tensor) and x.requires_grad and x.device.type == "cpu"]
    ends = [x for x in _leaves(result) if isinstance(x, torch.Tensor) and x.requires_grad and x.is_floating_point()]
    ends = [x for x in ends if all(x is not w for w in wanted) and x.device.type == "cpu"]
    if not wanted or not ends:
        return []
    gradients = torch.autograd.grad(sum(x.double().sum() for x in ends), wanted, allow_unused=True)
    return [g for g in gradients if g is not None]


def _short(value):
    if isinstance(value, torch.Tensor):
        extra = ", requires_grad" if value.requires_grad else ""
        plain = value.device.type == "cpu" and _plain(value)
        numbers = value.tolist() if plain and value.numel() < 20 else "…"
        shape = "nested" if value.is_nested else tuple(value.shape)
        return f"tensor {shape} {value.dtype} {value.device} {value.layout}{extra} {numbers}"
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} {value.shape} {value.dtype} {value.tolist() if value.size < 20 else '…'}"
    if isinstance(value, int) and abs(value) > 10**50:
        return "an integer of many digits"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_short, value[:8]))}{', …' if len(value) > 8 else ''})"
    try:
        return repr(value)[:200]
    except Exception as error:
        return f"{type(value).__name__} ({type(error).__name__} in repr)"
