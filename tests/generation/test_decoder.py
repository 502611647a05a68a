"""Decoding a whole model token by token: the logits of the full forward pass, in fixed memory; and
``generate``.
"""

import pytest
import torch
from reformer_ref.generation import Decoder, Recomputer, cache_unsupported_reason, generate, sample_token
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import relative_error


def model_of(pattern=("local", "lsh"), n_hashes=2, preset="strict", max_length=256, dtype=torch.float64, **changes):
    lsh = LSHOptions.preset(preset, n_hashes=n_hashes, n_buckets=8, chunk_length=4)
    config = ReformerConfig(
        **{
            "vocab_size": 20, "d_model": 16, "n_layers": 2 * len(pattern), "n_heads": 2, "d_ff": 24, "pattern": pattern,
            "max_length": max_length, "lsh": lsh, "local": LocalOptions(chunk_length=4), **changes,
        }
    )  # fmt: skip
    return ReformerLM(config).to(dtype).eval()


def tokens_of(rows, length, seed=0):
    return torch.randint(20, (rows, length), generator=torch.Generator().manual_seed(seed))


def decoded(model, tokens, prompt, mask=None):
    """Logits after every token from the last of the prompt on: (rows, length − prompt + 1,
    vocab_size).
    """
    decoder = Decoder(model)
    out = [decoder.prefill(tokens[:, :prompt], mask)]
    return torch.stack(out + [decoder.step(t) for t in tokens[:, prompt:].unbind(1)], 1)


@pytest.mark.parametrize("n_hashes", [1, 2, 4, 8])
@pytest.mark.parametrize("pattern", [("lsh",), ("local", "lsh"), ("lsh", "dense", "regular")], ids=",".join)
@pytest.mark.parametrize("prompt", [1, 3, 30])
@torch.no_grad()
def test_equals_the_full_forward(pattern, n_hashes, prompt):
    """Past several chunks, and past the rings: 8 buckets of 4 members each, 60 tokens, three rows."""
    model, tokens = model_of(pattern, n_hashes), tokens_of(3, 60)
    assert relative_error(decoded(model, tokens, prompt), model(tokens)[:, prompt - 1 :]) <= 1e-12


@pytest.mark.parametrize("capacity", [60, 256])
@pytest.mark.parametrize("n_hashes", [1, 4])
@torch.no_grad()
def test_keys_by_position_or_in_the_rings_are_the_same(capacity, n_hashes):
    model, tokens = model_of(n_hashes=n_hashes), tokens_of(2, 60)
    decoder = Decoder(model, capacity)
    out = [decoder.prefill(tokens[:, :20])] + [decoder.step(t) for t in tokens[:, 20:].unbind(1)]
    lsh = [cache for cache in decoder.caches if hasattr(cache, "members")]
    assert {cache.by_position for cache in lsh} == {capacity <= n_hashes * 8 * 4}
    assert relative_error(torch.stack(out, 1), model(tokens)[:, 19:]) <= 1e-12


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("positions", ["axial", "learned", "sinusoidal", "none"])
@torch.no_grad()
def test_rows_of_different_prompts(left, positions):
    model, lengths = model_of(n_hashes=2, positions=positions), (1, 5, 13)
    prompts = [tokens_of(1, n, seed=n)[0] for n in lengths]
    later = tokens_of(3, 20, seed=9)
    padded, mask = torch.zeros(3, 13, dtype=torch.int64), torch.zeros(3, 13, dtype=torch.bool)
    for row, p in enumerate(prompts):
        at = slice(13 - len(p), None) if left else slice(len(p))
        padded[row, at], mask[row, at] = p, True
    decoder = Decoder(model)
    out = torch.stack([decoder.prefill(padded, mask)] + [decoder.step(t) for t in later.unbind(1)], 1)
    for row, p in enumerate(prompts):
        want = model(torch.cat([p, later[row]])[None])[:, len(p) - 1 :]
        assert relative_error(out[row : row + 1], want) <= 1e-12


@torch.no_grad()
def test_float32_is_as_near_as_the_full_forward():
    """Against float64, at most twice the error of the float32 forward pass, where buckets agree."""
    exact, tokens = model_of(n_hashes=4), tokens_of(2, 60)
    want, model = exact(tokens), model_of(n_hashes=4, dtype=torch.float32)
    naive = relative_error(model(tokens), want)
    assert naive < 1e-4, "the buckets of both precisions differ: choose another seed"
    assert relative_error(decoded(model, tokens, 1), want) <= 2 * naive


@torch.no_grad()
def test_memory_does_not_grow_and_neither_do_tables():
    model = model_of(max_length=4096)
    decoder = Decoder(model)
    decoder.prefill(tokens_of(2, 3))
    before = [(x.data_ptr(), x.shape) for x in decoder.tensors()]
    for t in tokens_of(2, 200).unbind(1):
        decoder.step(t)
    assert [(x.data_ptr(), x.shape) for x in decoder.tensors()] == before


def test_repeated_rows_go_their_own_ways():
    model, tokens = model_of(), tokens_of(1, 10)
    decoder = Decoder(model)
    decoder.prefill(tokens)
    decoder.repeat(2)
    a, b = torch.tensor([1, 2]), torch.tensor([3, 3])
    decoder.step(a)
    got = decoder.step(b)
    with torch.no_grad():
        for row in range(2):
            want = model(torch.cat([tokens[0], a[row : row + 1], b[row : row + 1]])[None])[:, -1]
            assert relative_error(got[row : row + 1], want) <= 1e-12


@pytest.mark.parametrize("preset", ["paper", "trax", "huggingface", "lucidrains"])
def test_chunk_windows_have_no_cache_and_say_so(preset):
    model = model_of(preset=preset)
    assert "move with every token" in cache_unsupported_reason(model.config)
    with pytest.raises(ValueError, match="cannot be decoded from a cache"):
        Decoder(model)
    with pytest.raises(ValueError, match="cache=True is not possible"):
        generate(model, tokens_of(1, 3)[0], 2, cache=True)


@pytest.mark.parametrize("preset", ["strict", "trax", "paper"])
@torch.no_grad()
def test_recomputing_is_the_model_on_every_row(preset):
    model, tokens = model_of(preset=preset), tokens_of(2, 9)
    mask = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    decoder = Recomputer(model)
    got = decoder.prefill(tokens, mask)
    assert torch.equal(got[1:], model(tokens[1:, 4:])[:, -1])
    decoder.repeat(2)
    got = decoder.step(torch.tensor([1, 2, 3, 4]))
    assert torch.equal(got[3:], model(torch.cat([tokens[1, 4:], torch.tensor([4])])[None])[:, -1])


@pytest.mark.parametrize("cache", [True, False, None])
def test_generate_draws_the_same_either_way(cache):
    model, prompt = model_of(), tokens_of(1, 7)[0]
    want = generate(model, prompt, 25, generator=torch.Generator().manual_seed(3), cache=False)
    got = generate(model, prompt, 25, generator=torch.Generator().manual_seed(3), cache=cache)
    assert torch.equal(got, want)
    assert len(want) == 32


def test_generate_several_prompts_and_samples():
    model, prompts = model_of(), [tokens_of(1, n, seed=n)[0] for n in (1, 6)]
    greedy = generate(model, prompts, 8, temperature=0.0)
    for prompt, out in zip(prompts, greedy, strict=True):
        assert torch.equal(out, generate(model, prompt, 8, temperature=0.0))
    first, second = generate(model, prompts, 8, samples=3)
    assert first.shape == (3, 9)
    assert second.shape == (3, 14)
    assert torch.equal(second[:, :6], prompts[1].expand(3, -1))
    assert len({tuple(row.tolist()) for row in second}) > 1
    assert generate(model, prompts[0], 4, samples=1).shape == (1, 5)


@pytest.mark.parametrize("training", [True, False])
def test_generate_leaves_modes_and_random_state_alone(training):
    model = model_of(dropout=0.5).train(training)
    model.backbone.dropout.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    first = generate(model, tokens_of(1, 4)[0], 6)
    assert torch.equal(first, generate(model.eval(), tokens_of(1, 4)[0], 6))
    model.train(training)
    model.backbone.dropout.eval()
    generate(model, tokens_of(1, 4)[0], 6)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cache", [True, False])
def test_ctrl_c_keeps_what_there_is(cache):
    printed = []

    def interrupt(token):
        printed.append(token)
        if len(printed) == 5:
            raise KeyboardInterrupt

    out = generate(model_of(), tokens_of(1, 4)[0], 50, cache=cache, on_token=interrupt)
    assert out[4:].tolist() == printed
    assert len(printed) == 5


def test_progress_goes_to_stderr(capsys):
    generate(model_of(), tokens_of(1, 2)[0], 3, progress=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        (torch.arange(3), {"max_new_tokens": -1}, ValueError, "max_new_tokens"),
        (torch.arange(3), {"max_new_tokens": 300}, ValueError, "max_length = 256, got 303"),
        ([], {}, ValueError, "empty list"),
        ("text", {}, TypeError, "prompt must be bytes"),
        (torch.arange(3.0), {}, TypeError, "float32"),
        (torch.zeros(0, dtype=torch.int64), {}, ValueError, "n >= 1"),
        (torch.tensor([99]), {}, ValueError, r"\[0, 20\)"),
        (torch.arange(3), {"samples": 0}, ValueError, "samples"),
        (torch.arange(3), {"generator": 3}, TypeError, "generator"),
    ],
)
def test_generate_refuses(prompt, options, error, words):
    with pytest.raises(error, match=words):
        generate(model_of(), prompt, **{"max_new_tokens": 1, **options})


def test_generate_refuses_models_that_look_ahead():
    lsh = LSHOptions(causal=False, chunks_after=1)
    model = model_of(causal=False, lsh=lsh, local=LocalOptions(causal=False, chunks_after=1))
    with pytest.raises(ValueError, match="causal"):
        generate(model, tokens_of(1, 3)[0], 2)


def test_the_decoder_says_what_is_wrong():
    model, tokens = model_of(), tokens_of(2, 5)
    decoder = Decoder(model, capacity=6)
    with pytest.raises(ValueError, match="call prefill first"):
        decoder.step(tokens[:, 0])
    with pytest.raises(ValueError, match="at least one real token"):
        decoder.prefill(tokens, torch.tensor([[True] * 5, [False] * 5]))
    with pytest.raises(ValueError, match="capacity of 6"):
        decoder.prefill(tokens_of(1, 7))
    decoder.prefill(tokens)
    with pytest.raises(ValueError, match="prefill comes first"):
        decoder.prefill(tokens)
    with pytest.raises(ValueError, match="one token per row"):
        decoder.step(tokens[:1, 0])
    decoder.step(tokens[:, 0])
    with pytest.raises(ValueError, match="full"):
        decoder.step(tokens[:, 0])
    with pytest.raises(ValueError, match="capacity"):
        Decoder(model, capacity=257)


@pytest.mark.parametrize("pattern", [("local", "lsh"), ("dense", "regular")], ids=",".join)
@torch.no_grad()
def test_a_padded_prompt_may_be_wider_than_the_capacity(pattern):
    model, tokens = model_of(pattern), tokens_of(1, 6)
    mask = torch.tensor([[False, True, True, True, False, False]])
    got = Decoder(model, capacity=3).prefill(tokens, mask)
    assert relative_error(got, model(tokens[:, 1:4])[:, -1]) <= 1e-12


def test_more_of_what_is_wrong_is_said():
    model, tokens = model_of(), tokens_of(2, 5)
    with pytest.raises(ValueError, match="call prefill first"):
        Decoder(model).repeat(2)
    decoder = Decoder(model)
    decoder.prefill(tokens)
    for wrong in (torch.tensor(1), [1, 2], torch.tensor([[1], [2]])):
        with pytest.raises(ValueError, match="one token per row"):
            decoder.step(wrong)
    with pytest.raises(ValueError, match="at least one real token"):
        Recomputer(model).prefill(tokens, torch.tensor([[True] * 5, [False] * 5]))
    with pytest.raises(ValueError, match="cache must be"):
        generate(model, tokens[0], 1, cache="no")
    ring = model_of(local=LocalOptions(chunk_length=4, wrap=True, chunks_after=1))
    assert "wrap around" in cache_unsupported_reason(ring.config)


def test_nothing_is_drawn_from_logits_without_values():
    with pytest.raises(ValueError, match="logits must hold values"):
        sample_token(torch.zeros(1, 3, device="meta"), 0.7, generator=torch.Generator())
