"""Sentence pairs: reading, splitting, padding, batches, and the two baselines; BLEU where sacrebleu
is installed.
"""

import builtins
import collections
import hashlib
import importlib.util
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_lab.data import translation as t

STORED_SHA256 = "18caf2dd9ee5ec21df0653b0f4d0d5162980ecae8eb628955d02d08bb17d3c3e"
needs_bleu = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs the extra `lab`")
PAIRS = [(f"the {a} dog sees the {b} cat", f"der {a}e hund sieht die {b}e katze") for a in "abcdef" for b in "ghijkl"]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# The stored pairs


def test_the_stored_pairs_are_those_of_the_recorded_claim():
    pairs = t.english_german(20_000)
    text = "".join(f"{english}\t{german}\n" for english, german in pairs)
    assert hashlib.sha256(text.encode()).hexdigest() == STORED_SHA256
    assert len({english for english, _ in pairs}) == 20_000
    assert t.english_german(50) == pairs[:50]
    assert pairs[0] == ("Do I have to follow the green horse today?", "Muss ich heute dem grünen Pferd folgen?")
    train, held_out = t.split(t.fitting(pairs, 200), 300)
    assert (len(train), len(held_out)) == (19_700, 300)
    for wrong in (0, 20_001):
        with pytest.raises(ValueError, match="count"):
            t.english_german(wrong)
    with pytest.raises(TypeError, match="count"):
        t.english_german(1.5)


def test_stored_sentences_are_well_formed():
    for english, german in t.english_german(20_000):
        for text in (english, german):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß, ]*[.?]", text)
            assert "  " not in text
            assert " ," not in text
        assert english[-1] == german[-1]
        assert (", " in german) == bool(re.search(" (because|although|while|before) ", english))
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\bthis \w*s\b(?<!glass)", english) or "this" in english
        assert not re.search(r"\b(in|bei) dem ", german)
        negations = len(re.findall(r"\b(nicht|kein(?:e[nmrs]?)?)\b", german.lower()))
        assert negations == len(re.findall(r"\b(?:not|cannot)\b", english)), (english, german)


# Reading


def test_pairs_are_read_as_they_stand(tmp_path):
    text = "\ufeffGo on!\tMach weiter!\nWhy?\t Warum? \tCC-BY 2.0\r\n\n  \nGo on!\tMach weiter!\nGo on!\tWeiter!\n"
    got = t.read_pairs(written(tmp_path / "f.tsv", text))
    assert got == [("Go on!", "Mach weiter!"), ("Why?", "Warum?"), ("Go on!", "Weiter!")]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\tb\nno tab here\n", "line 2 of .* must be source, tab, target"), ("a\tb\n\tc\n", "line 2"),
     ("a\tb\nc\t \n", "line 2"),
     (b"a\tb\n\xff\xfe\tc\n", "line 2 of .* must be UTF-8"), ("", "at least 2 pairs.*got 0"),
     ("a\tb\n", "at least 2 pairs"), ("a\tb\na\tb\n", "at least 2 pairs.*got 1")],
)  # fmt: skip
def test_other_files_are_refused_with_the_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        t.read_pairs(written(tmp_path / "f", content))


def test_missing_files_folders_and_long_ones_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        t.read_pairs(tmp_path / "nothing")
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="a folder or a device"):
            t.read_pairs(path)
    monkeypatch.setattr(t, "MOST_BYTES", 5)
    with pytest.raises(ValueError, match="at most 5 bytes"):
        t.read_pairs(written(tmp_path / "f", "abc\tdef\n"))


@given(content=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_file_leads_to_anything_but_a_value_error(tmp_path_factory, content):
    path = written(tmp_path_factory.mktemp("pairs") / "f", content)
    message = str(path)
    try:
        assert all(source and target for source, target in t.read_pairs(path))
    except ValueError as error:
        message = str(error)
    assert str(path) in message


# Splitting, tokens, batches


def test_no_source_is_in_both_parts():
    twice = [*PAIRS, *((source, target + " auch") for source, target in PAIRS)]
    train, held_out = t.split(twice, 10)
    assert len(held_out) == 10
    assert not {s for s, _ in train} & {s for s, _ in held_out}
    assert len(train) <= 62
    assert t.split(twice, 10) == (train, held_out)
    assert t.split(twice, 10, seed=1) != (train, held_out)
    for wrong in (0, 72):
        with pytest.raises(ValueError, match="held_out"):
            t.split(twice, wrong)
    with pytest.raises(ValueError, match="different sources"):
        t.split([("a", "b"), ("a", "c")], 1)


@given(target=st.text())
@settings(max_examples=50, deadline=None)
def test_text_comes_back_from_its_tokens(target):
    source_tokens, tokens = t.to_tokens("x", target)
    assert source_tokens == [120, t.END]
    assert (tokens[0], tokens[-1]) == (t.START, t.END)
    assert max(tokens) < t.VOCAB_SIZE
    assert t.to_text(np.array(tokens)) == target


def test_bytes_that_are_no_text_become_replacement_characters():
    assert t.to_text([72, 0xC3, 105]) == "H\ufffdi"


def test_fitting_counts_start_and_end():
    pairs = [("abc", "äb"), ("abc", "abcd")]
    assert t.fitting(pairs, 5) == [pairs[0]]  # START, 3 bytes, END
    assert t.fitting(pairs, 6) == pairs


@pytest.mark.parametrize("pairs", [None, "ab", [("a",)], [("a", "b", "c")], [("a", None)], [("a", "\ud800")], [3]])
@pytest.mark.parametrize(
    "function",
    [
        t.padded,
        t.WordTable,
        t.Nearest,
        lambda p: t.split(p, 1),
        lambda p: t.Batches(p, 1, 0),
        lambda p: t.fitting(p, 9),
    ],
)
def test_what_is_no_pairs_is_refused(function, pairs):
    with pytest.raises((TypeError, ValueError), match="pairs"):
        function(pairs)


def test_tokens_are_numbers_in_a_row():
    assert t.to_text([]) == ""
    for wrong in ([-1], [[97]], [1.5], None):
        with pytest.raises((TypeError, ValueError), match="tokens"):
            t.to_text(wrong)


def test_padding_is_masked():
    pairs = [("ab", "xyz"), ("a", "ü")]
    source, target, source_mask, target_mask = t.padded(pairs)
    assert source.dtype == target.dtype == np.int64
    assert source.tolist() == [[97, 98, t.END], [97, t.END, 0]]
    assert source_mask.tolist() == [[True] * 3, [True, True, False]]
    assert target.tolist() == [[t.START, 120, 121, 122, t.END], [t.START, 0xC3, 0xBC, t.END, 0]]
    assert target_mask.sum(1).tolist() == [5, 4]


@pytest.mark.parametrize("batch", [1, 4, 5, 36])
def test_every_epoch_has_every_pair_once(batch):
    batches = t.Batches(PAIRS, batch, seed=3)
    per_epoch = len(PAIRS) // batch
    epochs = [np.concatenate([batches.rows(e * per_epoch + i) for i in range(per_epoch)]) for e in range(3)]
    for rows in epochs:
        assert len(set(rows.tolist())) == per_epoch * batch
    if batch < 36:
        assert not np.array_equal(epochs[0], epochs[1])


def test_batches_are_a_function_of_seed_and_step_alone():
    batches, others = t.Batches(PAIRS, 4, 0), t.Batches(PAIRS, 4, 0)
    late = others.rows(25)
    rows = [batches.rows(step) for step in range(30)]
    np.testing.assert_array_equal(rows[25], late)
    np.testing.assert_array_equal(rows[2], others.rows(2))
    assert any(not np.array_equal(rows[i], t.Batches(PAIRS, 4, 1).rows(i)) for i in range(5))
    for got, want in zip(batches.at(7), t.padded([PAIRS[i] for i in rows[7]]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_batches_hold_sentences_of_similar_length():
    rng = np.random.default_rng(0)
    pairs = [("a" * n, "b" * n) for n in rng.integers(5, 100, 400)]
    batches = t.Batches(pairs, 8, 0)
    filled = np.mean([batches.at(step)[3].mean() for step in range(50)])
    drawn = np.mean([t.padded([pairs[i] for i in rng.integers(0, 400, 8)])[3].mean() for _ in range(50)])
    assert filled > 0.93
    assert drawn < 0.75


@pytest.mark.parametrize(("batch", "seed", "step"), [(0, 0, 0), (37, 0, 0), (4, -1, 0), (4, 0, -1)])
def test_batches_refuse(batch, seed, step):
    with pytest.raises(ValueError, match="must be at"):
        t.Batches(PAIRS, batch, seed).rows(step)


# Baselines


def test_words_and_sentences():
    assert t.words("Does it work, Anna?") == ["does", "it", "work", ",", "Anna", "?"]
    assert t.sentence(t.words("Does it work, Anna?")) == "Does it work, Anna?"
    assert t.words("") == []
    assert t.sentence([]) == ""


def test_the_word_table_finds_the_dictionary():
    """Words in any order, with some in the target that come from none."""
    rng, dictionary = np.random.default_rng(0), {chr(97 + i): chr(65 + i) * 2 for i in range(20)}
    pairs = []
    for _ in range(60):
        chosen = rng.choice(sorted(dictionary), 4, replace=False)
        other = [*(dictionary[word] for word in rng.permutation(chosen)), "oh"]
        pairs.append(("so " + " ".join(chosen), "so " + " ".join(other)))
    table = t.WordTable(pairs)
    assert {word: table.table[word] for word in dictionary} == dictionary
    assert table.translate("Then b, a!") == "Then BB, AA!"


def test_expectation_maximisation_is_model_1():
    table = t.WordTable([("p a b", "q x y"), ("p a", "q x"), ("p", "q")], rounds=20)
    assert table.table == {"p": "q", "a": "x", "b": "y"}


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_word_table_is_that_of_a_slow_count(seed):
    """Expectation-maximisation with dictionaries, pair by pair and word by word."""
    rng = np.random.default_rng(seed)
    texts = [tuple(" ".join(rng.choice(list(letters), rng.integers(1, 6))) for letters in ("abcd", "vwxyz"))
             for _ in range(7)]  # fmt: skip
    p = collections.defaultdict(lambda: 1.0)
    for _ in range(3):
        counts, totals = collections.defaultdict(float), collections.defaultdict(float)
        for source, target in texts:
            sources = [None, *t.words(source)]
            for word in t.words(target):
                together = sum(p[s, word] for s in sources)
                for s in sources:
                    counts[s, word] += p[s, word] / together
                    totals[s] += p[s, word] / together
        p = collections.defaultdict(float, {(s, word): n / totals[s] for (s, word), n in counts.items()})
    table = t.WordTable(texts, rounds=3).table
    assert table.keys() == {s for s, _ in p} - {None}
    for s, word in table.items():
        assert p[s, word] == pytest.approx(max(value for (other, _), value in p.items() if other == s), rel=1e-9)


def test_a_word_table_of_marks_alone_is_empty():
    table = t.WordTable([("?!", "!"), ("...", ".")])
    assert table.table == {}
    assert table.translate("hm?") == "Hm?"


def test_nearest_copies_the_most_similar_sentence():
    nearest = t.Nearest(PAIRS)
    for source, target in PAIRS:
        assert nearest.translate(source) == target
    assert nearest.translate("the a dog sees nothing at all") in {target for source, target in PAIRS if " a " in source}
    assert nearest.translate("zzz") in {target for _, target in PAIRS}


# BLEU


@needs_bleu
def test_bleu_is_sacrebleus():
    import sacrebleu

    references = ["the cat sat on the mat today", "there is a dog in the garden"]
    texts = ["the cat sat on a mat today", "there is the dog in the garden"]
    score, signature = t.bleu(texts, references)
    assert score == sacrebleu.corpus_bleu(texts, [references]).score
    assert 20 < score < 90
    assert "tok:13a" in signature
    assert t.bleu(references, references)[0] == pytest.approx(100.0)


@needs_bleu
@pytest.mark.parametrize(("texts", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_bleu_refuses(texts, references):
    with pytest.raises(ValueError, match="as many as references"):
        t.bleu(texts, references)


def test_missing_sacrebleu_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'reformer_ref\[lab\]'"):
        t.bleu(["a"], ["a"])
