"""A4, the reversible block: its answers against autograd and the room's spec, its notebook, its wrong solutions."""

import numpy as np
import pytest
import torch
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.exercises import exercise
from reformer_lab.classroom.exercises.reversible import branch
from reformer_lab.classroom.exercises.reversible_texts import block_picture
from reformer_lab.classroom.variants import Variant
from reformer_ref.testing import autograd_vjp, relative_error
from tests.classroom.harness import NOTEBOOKS, cells, lost_cells, variants

NAME = "A4_reversible"
VARIANTS = variants(NAME)


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v.coupling} {v.sign:+} {v.carry:g} {v.keep}")
def variant(request):
    return request.param


def definition(variant, x1, x2, f, g):
    """The block as its definition reads, on arrays or tensors."""
    if variant.coupling == "f_then_g":
        x1 = variant.carry * x1 + variant.sign * f(x2)
        return x1, variant.carry * x2 + variant.sign * g(x1)
    x2 = variant.carry * x2 + variant.sign * g(x1)
    return variant.carry * x1 + variant.sign * f(x2), x2


def test_answers_are_the_definition_and_its_gradients(variant):
    rng = np.random.default_rng(0)
    x1, x2, d_y1, d_y2 = rng.standard_normal((4, 5, 3))
    w_f, w_g = rng.standard_normal((2, 3, 3))
    branches = [part for w in (w_f, w_g) for part in branch(w)]

    def block(a, b, v, w):
        return torch.stack(definition(variant, a, b, lambda z: torch.tanh(z @ v), lambda z: torch.tanh(z @ w)))

    (y1, y2), (d_x1, d_x2, d_wf, d_wg) = autograd_vjp(block, (x1, x2, w_f, w_g), np.stack([d_y1, d_y2]))
    got = answer("A4.backward").reference(variant)(y1, y2, d_y1, d_y2, *branches)
    for ours, wanted in zip(got, (x1, x2, d_x1, d_x2, d_wf, d_wg), strict=True):
        assert relative_error(ours, wanted) < 1e-12
    blocks = [branches[::2]] * 3
    forward, inverse = (answer(f"A4.{name}").reference(variant) for name in ("forward", "inverse"))
    a, b = x1, x2
    for _ in blocks:
        a, b = definition(variant, a, b, *branches[::2])
    assert relative_error(forward(x1, x2, blocks), (a, b)) < 1e-13
    assert relative_error(inverse(a, b, blocks), (x1, x2)) < 1e-12


def test_lists_are_handed_out_as_lists():
    solution = cells(NAME)["A4-torch"]
    source = solution.replace("[z, *params]", "[z] + params").replace("reversed(blocks)", "blocks.copy()[::-1]")
    assert source != solution
    assert lost_cells(NAME, {"A4-torch": source}, Variant()) == []


@pytest.mark.parametrize("variant", VARIANTS[::2], ids=lambda v: v.literal())
def test_the_notebook_runs_from_top_to_bottom(variant):
    there = {}
    for cell in NOTEBOOKS[NAME].cells:
        if cell.cell_type == "code":
            exec(cell.source.replace("VARIANT = Variant()", f"VARIANT = {variant.literal()}"), there)
    assert there["VARIANT"] == variant


def test_definitions_say_what_the_answers_do(variant):
    f, g = (lambda v: v**2), (lambda v: 3 * v)
    y1, y2 = definition(variant, 2.0, 3.0, f, g)
    text = variant.describe("A4.block")
    assert f"$y_1 = {y1:g}$" in text
    assert f"$y_2 = {y2:g}$" in text
    assert f"= {y1:g}, {y2:g}$" in variant.describe("A4.backward")
    dropped, _ = answer("A4.dropout").reference(variant)(lambda x: x, None, 0.5, 0)
    assert ", ".join(f"{n:g}" for n in dropped(np.array([1.0, 2.0, 3.0, 4.0]))) in variant.describe("A4.dropout")


def test_the_picture_tells_the_order(variant):
    picture = block_picture(variant)
    first = "F changes stream 1, then" if variant.coupling == "f_then_g" else "G changes stream 2, then"
    assert first in picture.caption
    assert picture.numbers == {"sign": variant.sign, "factor": variant.carry}


def test_exercises_refuse_the_wrong_number_of_gradients():
    task, (args, *_) = (exercise("A4.torch"), answer("A4.torch").cases(Variant(), np.random.default_rng(0), False))
    with pytest.raises(AssertionError, match="one tensor for every tensor of `params`"):
        task.run(lambda y1, y2, d_y1, d_y2, blocks, params: (d_y1, d_y2, []), args)
