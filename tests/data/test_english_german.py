"""The grammar: sentences whose translation is known, agreement in all of them, and the same ones
for the same seed.
"""

import re

import numpy as np
import pytest
from reformer_lab.data import english_german as grammar
from reformer_lab.data.english_german import ACCUSATIVE, DATIVE, GENITIVE, NOMINATIVE, PLURAL

PAIRS = grammar.pairs(3000, 0)


def entry(table, english):
    return next(e for e in table if e[0] == english)


def test_pairs_are_a_function_of_count_and_seed():
    assert grammar.pairs(50, 0) == PAIRS[:50]
    assert grammar.pairs(50, 1) != PAIRS[:50]
    assert len({english for english, _ in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(
    ("name", "gender", "case", "noun"),
    [("man", "m", GENITIVE, "Mannes"), ("teacher", "m", GENITIVE, "Lehrers"), ("girl", "n", GENITIVE, "Mädchens"),
     ("woman", "f", GENITIVE, "Frau"), ("boy", "m", ACCUSATIVE, "Jungen"), ("boy", "m", NOMINATIVE, "Junge"),
     ("neighbour", "m", GENITIVE, "Nachbarn"), ("man", PLURAL, DATIVE, "Männern"), ("woman", PLURAL, DATIVE, "Frauen"),
     ("man", PLURAL, ACCUSATIVE, "Männer"), ("bird", "m", GENITIVE, "Vogels"), ("child", PLURAL, DATIVE, "Kindern")],
)  # fmt: skip
def test_nouns_in_their_cases(name, gender, case, noun):
    assert grammar._noun(entry(grammar.PEOPLE, name)[3:], gender, case) == noun


def test_plurals_in_s_have_no_n_in_the_dative():
    assert grammar._noun(entry(grammar.PLACES, "car")[3:], PLURAL, DATIVE) == "Autos"


@pytest.mark.parametrize(
    ("determiner", "gender", "case", "want"),
    [("the", "m", DATIVE, "dem guten"), ("a", "m", NOMINATIVE, "ein guter"), ("a", "n", ACCUSATIVE, "ein gutes"),
     ("my", "f", DATIVE, "meiner guten"), ("our", "m", ACCUSATIVE, "unseren guten"),
     ("no", PLURAL, ACCUSATIVE, "keine guten"),
     ("", PLURAL, DATIVE, " guten"), ("", PLURAL, ACCUSATIVE, " gute"), ("this", "f", NOMINATIVE, "diese gute"),
     ("the", PLURAL, NOMINATIVE, "die guten"), ("this", "n", DATIVE, "diesem guten")],
)  # fmt: skip
def test_determiners_and_endings(determiner, gender, case, want):
    ending = grammar._adjective_ending(determiner, gender, case)
    assert f"{grammar._article(determiner, gender, case)} gut{ending}" == want


@pytest.mark.parametrize(
    ("verb", "table", "tense", "person", "at_end", "want"),
    [("pick up", grammar.PERSON, "present", "3", False, ("holt", "ab")),
     ("pick up", grammar.PERSON, "present", "1", True, ("abhole", "")),
     ("pick up", grammar.PERSON, "past", "p", False, ("haben", "abgeholt")),
     ("pick up", grammar.PERSON, "future", "3", False, ("wird", "abholen")),
     ("arrive", grammar.NOTHING, "past", "1", False, ("bin", "angekommen")),
     ("follow", grammar.PERSON_IN_DATIVE, "past", "3", False, ("ist", "gefolgt")),
     ("see", grammar.PERSON, "present", "1", False, ("sehe", "")),
     ("see", grammar.PERSON, "modal", "p", False, ("müssen", "sehen"))],
)  # fmt: skip
def test_german_verbs(verb, table, tense, person, at_end, want):
    modal = entry(grammar.MODALS, "have to")
    assert grammar._german_verb(tense, person, entry(table, verb), modal, at_end) == want


@pytest.mark.parametrize(
    ("tense", "negated", "person", "question", "want"),
    [("present", False, "3", False, ("", "sees")), ("present", True, "3", False, ("does", "not see")),
     ("present", False, "p", True, ("do", "see")), ("past", False, "1", False, ("", "saw")),
     ("past", False, "3", True, ("did", "see")), ("future", True, "3", False, ("will", "not see")),
     ("can", True, "3", False, ("cannot", "see")), ("can", True, "3", True, ("can", "not see")),
     ("have to", False, "3", False, ("", "has to see")), ("have to", True, "3", False, ("does", "not have to see")),
     ("have to", False, "p", True, ("do", "have to see"))],
)  # fmt: skip
def test_english_verbs(tense, negated, person, question, want):
    modals = [m for m in grammar.MODALS if m[0] == tense]
    modal, tense = (modals[0], "modal") if modals else (None, tense)
    assert grammar._english_verb(tense, negated, person, entry(grammar.PERSON, "see"), modal, question) == want


def test_sentences_are_well_formed():
    for english, german in PAIRS:
        for text in (english, german):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß, ]*[.?]", text)
            assert "  " not in text
            assert " ," not in text
        assert english[-1] == german[-1]
        assert (", " in german) == any(f" {c} " in english for c, _ in grammar.CONJUNCTIONS)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\bthis \w*s\b(?<!glass)", english) or "this" in english


def test_german_agrees_with_itself():
    """In whole sentences: contracted prepositions, an n in the dative plural, the verb last in a
    subordinate clause.
    """
    finite = {
        "hat",
        "ist",
        "haben",
        "sind",
        "habe",
        "bin",
        "wird",
        "werden",
        "werde",
        *(m[i] for m in grammar.MODALS for i in (2, 3)),
    }
    for table in (grammar.PERSON, grammar.THING, grammar.PERSON_IN_DATIVE, grammar.NOTHING):
        for *_, third, infinitive, _, prefix, _ in table:
            prefix = "" if prefix == "-" else prefix
            finite |= {prefix + third, prefix + infinitive, prefix + infinitive[:-1]}
    for _, german in PAIRS:
        assert not re.search(r"\b(in|bei) dem ", german)
        if ", " in german:
            assert german[:-1].split()[-1] in finite


def test_negation_is_said_once():
    negated = [(e, g) for e, g in PAIRS if re.search(r"\b(not|cannot)\b", e)]
    assert len(negated) > 300
    for english, german in PAIRS:
        said = len(re.findall(r"\b(nicht|kein(?:e[nmrs]?)?)\b", german.lower()))
        assert said == len(re.findall(r"\b(?:not|cannot)\b", english)), (english, german)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 0), ValueError), ((1, -1), ValueError), ((1.5, 0), TypeError), ((10**9, 0), ValueError)],
)
def test_other_arguments_are_refused(arguments, error):
    with pytest.raises(error):
        grammar.pairs(*arguments)


def test_a_generator_of_ones_own_can_be_given():
    english, german = grammar.Grammar(np.random.default_rng(0)).clause("subordinate")
    assert english
    assert german
