"""Assignment A3: its answers under every variant, the notebook's own solutions, wrong solutions, and its pictures."""

import json

import numpy as np
import pytest
import torch
from reformer_lab.classroom import cases, material
from reformer_lab.classroom.answers.lsh_attention import ANSWERS
from reformer_lab.classroom.checks import check
from reformer_lab.classroom.exercises import lsh_attention as topic
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.policy import broken_rules
from reformer_lab.classroom.variants import CHOICES, USES, Variant
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

ASSIGNMENTS = material.FOLDER
WRONG = json.loads((ASSIGNMENTS / "wrong/A3_lsh_attention.json").read_text())
CELLS = {
    cell["id"]: "".join(cell["source"])
    for cell in json.loads((ASSIGNMENTS / "source/A3_lsh_attention/A3_lsh_attention.ipynb").read_text())["cells"]
}
GRADED = {f"A3-{part}": (part,) for part in ("logits", "seen", "attend", "merge")} | {
    "A3-port": ("port", "gradient", "scale")
}


def some_variants(n):
    """The package's own, and n of any fields."""
    rng = np.random.default_rng(n)
    fields = [{f: CHOICES[f][rng.integers(len(CHOICES[f]))] for f in USES["A3"]} for _ in range(n)]
    return [Variant(), *(Variant(**one) for one in fields)]


def defined_by(source, variant):
    """The function that a cell defines."""
    names = {"np": np, "torch": torch, "VARIANT": variant}
    exec(source, names)
    return next(value for key, value in reversed(names.items()) if callable(value))


def lost(cells, variant):
    """The graded cells that these answer cells lose."""
    graded = []
    for cell, source in cells.items():
        fn = defined_by(source, variant)
        for name in GRADED[cell]:
            for part, run in (("check", check), ("hidden", grade)):
                try:
                    run(f"A3.{name}", fn, variant)
                except AssertionError:
                    graded.append(f"A3-{name}-{part}")
    return graded


def seen_by_hand(variant, order, buckets, m):
    """The definition once more, pair by pair."""
    n_hashes, length = order.shape
    free, table = (
        (-(-length // m) * m - length) * (variant.pad == "start"),
        np.zeros((n_hashes, length, length), bool),
    )
    reach = range(variant.n_look + 1) if variant.look == "back" else range(-variant.n_look, 1)
    earlier = (variant.sort_ties == "earliest_first") == (variant.look == "back")
    for h, i, j in np.ndindex(table.shape):
        s_i, s_j = (order[h].tolist().index(t) + free for t in (i, j))
        table[h, i, j] = (
            buckets[h, i] == buckets[h, j] and s_i // m - s_j // m in reach and i != j and earlier == (j < i)
        )
    return table


def test_what_is_seen_is_what_the_definition_says():
    for variant in some_variants(20):
        for args, (seen,) in cases.compute("A3.seen", variant, hidden=False):
            assert np.array_equal(seen, seen_by_hand(variant, *args))


def test_what_is_seen_is_what_the_room_says_where_it_knows_the_variant():
    for n_look in CHOICES["n_look"]:
        for args, (seen,) in cases.compute("A3.seen", Variant(n_look=n_look), hidden=True):
            options = LSHOptions(len(seen), None, args[2], n_look, count_once=False)
            counts = visible_counts(args[1], options)
            assert np.array_equal(self_as_last_resort(seen.sum(0) + np.eye(len(counts), dtype=int)) > 0, counts > 0)
            assert np.array_equal(seen.sum(0) * (1 - np.eye(len(counts))), np.tril(counts, -1))


def test_the_port_is_the_loops_of_the_notebook_and_merged_it_is_one_softmax():
    for variant in some_variants(12):
        loops = defined_by(CELLS["port-loops"], variant)
        merge, one_softmax = (ANSWERS[name].reference(variant) for name in ("A3.merge", "A3.attend"))
        for (q, k, v, order, buckets, m), (o, z) in cases.compute("A3.port", variant, hidden=False):
            for at in np.ndindex(q.shape[:-2]):
                seen = seen_by_hand(variant, order[at], buckets[at], m)
                by_hand = loops(q[at], k[at], v[at], seen)
                assert all(np.allclose(x, y[at], rtol=1e-12) for x, y in zip(by_hand, (o, z), strict=True))
                merged = merge(*map(torch.tensor, (o[at], z[at], v[at]))).numpy()
                assert np.allclose(merged, one_softmax(q[at] @ k[at].T, seen, v[at]), rtol=1e-12)


@pytest.mark.parametrize("cell", GRADED)
def test_the_solutions_of_the_notebook_lose_nothing(cell):
    solution = CELLS[cell].replace("    ### BEGIN SOLUTION\n", "").replace("    ### END SOLUTION", "")
    assert broken_rules(solution) == []
    for variant in [*some_variants(6), Variant.draw(5).only("A3")]:
        assert lost({cell: solution}, variant) == []


@pytest.mark.parametrize("name", topic.EXERCISES)
def test_the_answers_pass_the_check_and_the_check_of_the_room(name, capsys):
    check(name, ANSWERS[name].reference(Variant()), Variant())
    assert (ANSWERS[name].component_check is None) != ("; check_" in capsys.readouterr().out)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong["name"])
def test_wrong_solutions_lose_what_they_should(wrong):
    assert not any(map(broken_rules, wrong["cells"].values()))
    for variant in [Variant(), *(Variant.draw(seed).only("A3") for seed in (1, 2))]:
        assert lost(wrong["cells"], variant) == wrong["loses"]


def test_the_functions_of_the_package_do_not_solve_a_drawn_variant():
    def seen(order, buckets, chunk_length):
        tables = [visible_counts(one[None], LSHOptions(chunk_length=chunk_length)) for one in buckets]
        return np.array(tables) * (1 - np.eye(order.shape[-1], dtype=int)) > 0

    package = {
        "A3.logits": lambda q: q @ normalize_keys(q, 0.0).T,
        "A3.seen": seen,
        "A3.attend": lambda logits, seen, v: attend(
            logits, np.eye(len(v)), v, self_as_last_resort(seen.any(0) + np.eye(len(v), dtype=int))
        )[0],
    }
    for name, fn in package.items():
        grade(name, fn, Variant())
    for seed in range(30):
        failed = 0
        for name, fn in package.items():
            try:
                grade(name, fn, Variant.draw(seed).only("A3"))
            except AssertionError:
                failed += 1
        assert failed >= 2, seed


def test_definitions_are_short_and_tell_the_variants_apart():
    variants = set(some_variants(60))
    told = {variant: tuple(describe(variant) for describe in topic.DESCRIBE.values()) for variant in variants}
    assert all(len(text.split()) <= 130 for texts in told.values() for text in texts)
    without_rounds = {json.dumps(json.loads(v.to_json()) | {"n_hashes": 0}) for v in variants}
    assert len(set(told.values())) == len(without_rounds)


def test_pictures_show_the_first_case_of_every_variant():
    for variant in some_variants(1):
        for name in topic.PICTURES:
            picture = topic.illustrate(name, variant)
            assert picture.caption
            assert picture.png().startswith(b"\x89PNG")
