"""The component's own functions: spec against the attention of whole sequences, PyTorch against the spec, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.generation import api, checks, pytorch, spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.local_attention.spec import local_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import lsh_attention
from reformer_ref.testing import as_numpy, expect_close

ALL = pytest.mark.parametrize("version", [spec, pytorch], ids=["spec", "pytorch"])


def function(version, name):
    return getattr(version, name) if version is spec else as_numpy(getattr(version, name))


def test_the_door_gives_what_the_plain_version_gives():
    checks.check_token_probabilities(as_numpy(api.token_probabilities))


@ALL
def test_checks_hold(version):
    checks.check_lsh_decode(function(version, "lsh_decode"))
    checks.check_local_decode(function(version, "local_decode"))
    checks.check_token_probabilities(function(version, "token_probabilities"))


@ALL
@pytest.mark.parametrize("n_hashes", [1, 2, 4, 8])
@pytest.mark.parametrize("count_once", [True, False])
def test_decoding_is_the_attention_of_the_whole_sequence(version, n_hashes, count_once):
    rng = np.random.default_rng(0)
    options = LSHOptions.preset("strict", n_hashes=n_hashes, chunk_length=4, count_once=count_once, scale=0.7)
    qk, v = rng.normal(size=(2, 3, 37, 5)), rng.normal(size=(2, 3, 37, 4))
    buckets = rng.integers(4, size=(2, 3, n_hashes, 37))
    got = function(version, "lsh_decode")(qk, v, buckets, options)
    expect_close("outputs", got, lsh_attention(qk, v, buckets, options), 1e-12)


@ALL
@pytest.mark.parametrize(
    ("chunk_length", "before", "wrap"), [(4, 1, False), (4, 1, True), (64, 1, False), (3, 0, False), (5, 3, False)]
)
def test_local_decoding_is_local_attention(version, chunk_length, before, wrap):
    rng = np.random.default_rng(0)
    options = LocalOptions(chunk_length=chunk_length, chunks_before=before, wrap=wrap)
    q, k, v = (rng.normal(size=(2, 3, 31, 5)) for _ in range(3))
    got = function(version, "local_decode")(q, k, v, options)
    expect_close("outputs", got, local_attention(q, k, v, options), 1e-12)


WRONG = {
    "ring too long": (
        "lsh_decode",
        lambda x, v, b, o: spec.lsh_decode(x, v, b, replace(o, chunk_length=o.chunk_length + 1)),
    ),
    "always counted once": ("lsh_decode", lambda x, v, b, o: spec.lsh_decode(x, v, b, replace(o, count_once=True))),
    "first token not itself": (
        "lsh_decode",
        lambda x, v, b, o: spec.lsh_decode(x, v * (np.arange(v.shape[-2]) > 0)[:, None], b, o),
    ),
    "a chunk too many": (
        "local_decode",
        lambda q, k, v, o: spec.local_decode(q, k, v, replace(o, chunks_before=o.chunks_before + 1)),
    ),
    "no top-p": ("token_probabilities", lambda x, t, k, p: spec.token_probabilities(x, t, k, None)),
    "no top-k": ("token_probabilities", lambda x, t, k, p: spec.token_probabilities(x, t, None, p)),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG.values(), ids=WRONG)
def test_checks_refuse_wrong_functions(name, wrong):
    with pytest.raises(AssertionError):
        getattr(checks, f"check_{name}")(wrong)


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    temperature=st.sampled_from([0.0]) | st.floats(0.01, 10),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(1e-6, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_are_a_distribution_that_keeps_the_best(logits, temperature, top_k, top_p):
    logits = torch.tensor(logits, dtype=torch.float64)
    p = pytorch.token_probabilities(logits, temperature, top_k, top_p)
    assert p.sum() == pytest.approx(1.0)
    assert (p >= 0).all()
    likelihood = torch.softmax((logits - logits.max()) / temperature, -1) if temperature else logits
    assert p.max() == p[likelihood.argmax()]
    assert int((p > 0).sum()) <= min(top_k or 99, len(logits))


X = torch.ones(1, 3, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("token_probabilities", (X, -1.0), ValueError, "temperature"),
        ("token_probabilities", (X, 1.0, 0), ValueError, "top_k"),
        ("token_probabilities", (X, 1.0, None, 0.0), ValueError, "top_p"),
        ("token_probabilities", (X, 1.0, None, 1.5), ValueError, "top_p"),
        ("token_probabilities", (X, "hot"), TypeError, "temperature"),
        ("token_probabilities", (X * torch.nan,), ValueError, "logits must be numbers below infinity"),
        ("token_probabilities", (X - torch.inf,), ValueError, "with a finite one"),
        ("token_probabilities", (X[:, :0],), ValueError, "logits must have shape"),
        ("sample_token", (X,), TypeError, "generator"),
        ("sample_token", (X.long(), 0.0), TypeError, "logits must be dense"),
    ],
)
def test_bad_input_is_refused_at_the_door(name, arguments, error, words):
    with pytest.raises(error, match=words):
        getattr(api, name)(*arguments)
