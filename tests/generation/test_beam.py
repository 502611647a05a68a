"""Beam search: against every possible output, against greedy decoding, against the plain
definition, and in batches.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.generation import api, spec
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder

VOCAB, START, END = 4, 3, 2


def model_of(seed=0, sharp=4.0, vocab_size=VOCAB, **decoder):
    """A tiny encoder-decoder in float64; ``sharp`` makes its beliefs strong enough to differ."""
    shared = {"vocab_size": vocab_size, "d_model": 8, "n_heads": 2, "n_layers": 1, "max_length": 12, "seed": seed}
    encoder = ReformerConfig(**shared, pattern=("regular",), causal=False)
    decoder = ReformerConfig(**{**shared, "pattern": ("regular",), **decoder})
    model = ReformerEncoderDecoder(encoder, decoder).double()
    with torch.no_grad():
        model.head.weight *= sharp
    return model


def log_probabilities_of(model, source, mask=None):
    """What the plain definition asks the model: prefix -> log-probabilities of the next token."""
    encoded = model.encode(source, mask)

    @torch.no_grad()
    def after(prefix):
        logits = model.decode(torch.tensor([prefix]), encoded, mask)[0, -1]
        return torch.log_softmax(logits, -1).numpy()

    return after


def table(seed, vocab_size=VOCAB):
    """Random log-probabilities for every prefix, the same whenever they are asked for."""

    def after(prefix):
        rng = np.random.default_rng([seed, *prefix])
        logits = 2.0 * rng.normal(size=vocab_size)
        return logits - np.log(np.exp(logits).sum())

    return after


def every_output(after, longest, penalty):
    """(score, tokens) of every sequence that ends within ``longest`` tokens."""
    others = [token for token in range(VOCAB) if token != END]
    for n in range(1, longest + 1):
        for tokens in itertools.product(others, repeat=n - 1):
            prefix, score = (START,), 0.0
            for token in (*tokens, END):
                score += after(prefix)[token]
                prefix += (token,)
            yield score / ((5 + n) / 6) ** penalty, tokens


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_as_wide_as_all_outputs_finds_the_best_of_all(seed, penalty):
    after = table(seed)
    want = max(every_output(after, 4, penalty))
    tokens, score = spec.beam_search(after, VOCAB, START, END, 4, beams=200, length_penalty=penalty)
    assert tokens == want[1]
    assert score == pytest.approx(want[0], rel=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_model_is_searched_as_widely(seed, penalty):
    model, source = model_of(seed), torch.tensor([[0, 1, 1, 0, 2]])
    want = max(every_output(log_probabilities_of(model, source), 4, penalty))
    ((tokens, score),) = api.beam_search(
        model, source, start=START, end=END, max_new_tokens=4, beams=200, length_penalty=penalty
    )
    assert tuple(tokens.tolist()) == want[1]
    assert score == pytest.approx(want[0], rel=1e-10)


def greedy(after, longest):
    """The likeliest token again and again."""
    prefix, score = (START,), 0.0
    for _ in range(longest):
        p = after(prefix)
        token = int(np.argmax(p))
        score += p[token]
        if token == END:
            return prefix[1:], score, len(prefix)
        prefix += (token,)
    return prefix[1:], score, longest


@given(seed=st.integers(0, 10**6), longest=st.integers(1, 8), penalty=st.sampled_from([0.0, 0.6, 3.0]))
@settings(max_examples=60, deadline=None)
def test_one_beam_is_greedy(seed, longest, penalty):
    after = table(seed)
    tokens, score, n = greedy(after, longest)
    got = spec.beam_search(after, VOCAB, START, END, longest, beams=1, length_penalty=penalty)
    assert got[0] == tokens
    assert got[1] == pytest.approx(score / ((5 + n) / 6) ** penalty, rel=1e-12)


SOURCES = torch.tensor([[0, 1, 2, 0, 0], [1, 1, 1, 0, 2], [2, 0, 0, 0, 0], [0, 0, 1, 2, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_many_sentences_at_once_are_searched_as_one_by_one(beams, penalty, seed):
    """Sentences of different lengths, that end at different steps; each equals the plain
    definition.
    """
    model = model_of(seed)
    how = {"max_new_tokens": 8, "beams": beams, "length_penalty": penalty}
    got = api.beam_search(model, SOURCES, MASK, start=START, end=END, **how)
    for source, mask, (tokens, score) in zip(SOURCES, MASK, got, strict=True):
        after = log_probabilities_of(model, source[None], mask[None])
        want_tokens, want = spec.beam_search(after, VOCAB, START, END, 8, beams, penalty)
        assert tuple(tokens.tolist()) == want_tokens
        assert score == pytest.approx(want, rel=1e-10)
        assert tokens.dtype == torch.int64


class Table(torch.nn.Module):
    """A model whose next token depends on the source and the prefix as a table of random numbers
    says.
    """

    def __init__(self, seed, vocab_size, towards_end):
        super().__init__()
        self.seed, self.vocab_size, self.towards_end = seed, vocab_size, towards_end
        self.decoder_config = ReformerConfig(vocab_size=vocab_size, max_length=12, d_model=8)

    def encode(self, source, source_padding_mask=None):
        """The source itself."""
        return source[..., None].double()

    def decode(self, target, memory, source_padding_mask=None):
        """Logits of the last position alone."""
        logits = [self.logits(int(m[0, 0]), tuple(t.tolist())) for t, m in zip(target, memory, strict=True)]
        return torch.tensor(np.array(logits))[:, None]

    def logits(self, source, prefix):
        """float64 (vocab_size,)."""
        logits = 2.0 * np.random.default_rng([self.seed, source, *prefix]).normal(size=self.vocab_size)
        logits[END] += self.towards_end
        return logits


@given(
    seed=st.integers(0, 10**6), vocab_size=st.integers(4, 6), towards_end=st.floats(-3, 3), beams=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 0.6, 1.0, 4.0]), longest=st.integers(1, 7),
)  # fmt: skip
@settings(max_examples=250, deadline=None)
def test_searching_a_table_is_the_definition(seed, vocab_size, towards_end, beams, penalty, longest):
    model, how = Table(seed, vocab_size, towards_end), {"beams": beams, "length_penalty": penalty}
    sources = torch.tensor([[0], [1], [2]])
    got = api.beam_search(model, sources, start=START, end=END, max_new_tokens=longest, **how)
    for source, (tokens, score) in enumerate(got):

        def after(prefix, source=source):
            return torch.log_softmax(torch.tensor(model.logits(source, prefix)), -1).numpy()

        want_tokens, want = spec.beam_search(after, vocab_size, START, END, longest, **how)
        assert tuple(tokens.tolist()) == want_tokens
        assert score == pytest.approx(want, rel=1e-10)


def test_a_wider_beam_finds_what_greedy_misses():
    """0 looks better at first; all that follows 1 is certain."""

    def after(prefix):
        first = prefix[1:2]
        p = {(): [0.55, 0.43, 0.01, 0.01], (1,): [0.01, 0.0, 0.99, 0.0]}.get(first, [0.3, 0.3, 0.3, 0.1])
        return np.log(np.maximum(p, 1e-9))

    assert spec.beam_search(after, VOCAB, START, END, 5, beams=1)[0][0] == 0
    assert spec.beam_search(after, VOCAB, START, END, 5, beams=2)[0] == (1,)


def test_the_penalty_prefers_longer_outputs():
    def after(prefix):
        p = [0.6, 0.0, 0.4, 0.0] if len(prefix) < 6 else [0.0, 0.0, 1.0, 0.0]
        return np.log(np.maximum(p, 1e-12))

    lengths = [len(spec.beam_search(after, VOCAB, START, END, 8, 8, length_penalty=p)[0]) for p in (0.0, 1.0, 5.0)]
    assert lengths[0] == 0
    assert lengths[2] == 5
    assert lengths == sorted(lengths)


def test_what_never_ends_is_returned_unfinished():
    def after(prefix):
        return np.log([0.5, 0.3, 1e-30, 0.2])

    tokens, score = spec.beam_search(after, VOCAB, START, END, 3, beams=2)
    assert tokens == (0, 0, 0)
    assert score == pytest.approx(3 * math.log(0.5))
    model = model_of()
    with torch.no_grad():
        model.head.bias[END] = -1e4
    ((tokens, _),) = api.beam_search(model, SOURCES[:1], start=START, end=END, max_new_tokens=6, beams=2)
    assert len(tokens) == 6


def test_searching_changes_nothing_and_repeats_itself():
    model = model_of(dropout=0.5).train()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, second = (
        api.beam_search(model, SOURCES, MASK, start=START, end=END, max_new_tokens=7, beams=3) for _ in range(2)
    )
    assert model.training
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, second, strict=True))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", ["dense", "local", "lsh"])
def test_every_kind_of_attention_can_be_searched(kind):
    model = model_of(pattern=(kind,))
    got = api.beam_search(model, SOURCES, MASK, start=START, end=END, max_new_tokens=5, beams=2)
    assert len(got) == 4
    assert all(math.isfinite(score) for _, score in got)


def test_an_ordinary_model_can_be_searched():
    model = model_of(streams=1, reversible=False)
    got = api.beam_search(model, SOURCES, MASK, start=START, end=END, max_new_tokens=5, beams=2)
    assert len(got) == 4


def test_a_stop_is_asked_for_before_every_step():
    class Stopped(Exception):
        pass

    asked = []

    def stop():
        asked.append(0)
        if len(asked) == 3:
            raise Stopped

    model = model_of()
    with torch.no_grad():
        model.head.bias[END] = -1e4
    with pytest.raises(Stopped):
        api.beam_search(model, SOURCES, MASK, start=START, end=END, max_new_tokens=7, check_stop=stop)


def test_a_mask_for_all_sources_is_one_for_each():
    model, how = model_of(), {"start": START, "end": END, "max_new_tokens": 6, "beams": 2}
    mask = torch.tensor([True, True, False, True, False])
    want = api.beam_search(model, SOURCES, mask.expand(SOURCES.shape), **how)
    for got, expected in zip(api.beam_search(model, SOURCES, mask, **how), want, strict=True):
        assert torch.equal(got[0], expected[0])
        assert got[1] == expected[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"start": 4}, ValueError, "start"), ({"end": -1}, ValueError, "end"), ({"end": START}, ValueError, "different"),
     ({"beams": 0}, ValueError, "beams"), ({"beams": 1.0}, TypeError, "beams"),
     ({"max_new_tokens": 0}, ValueError, "max_new_tokens"), ({"max_new_tokens": 13}, ValueError, "max_length"),
     ({"length_penalty": -0.1}, ValueError, "length_penalty"),
     ({"length_penalty": math.nan}, ValueError, "length_penalty"),
     ({"length_penalty": "1"}, TypeError, "length_penalty"), ({"check_stop": 3}, TypeError, "check_stop"),
     ({"model": None}, TypeError, "ReformerEncoderDecoder"), ({"source": [1]}, TypeError, "source"),
     ({"source_padding_mask": MASK[:, :2]}, ValueError, "padding_mask")],
)  # fmt: skip
def test_other_arguments_are_refused(changes, error, message):
    arguments = {"model": model_of(), "source": SOURCES, "start": START, "end": END, "max_new_tokens": 4}
    with pytest.raises(error, match=message):
        api.beam_search(**{**arguments, **changes})
