"""The training loop, checkpoints and sampling, on a model of a few thousand weights."""

import json
import math
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reformer_ref import checkpoint, training
from reformer_ref.data import text
from reformer_ref.generation.pytorch import generate, sample_token, token_probabilities
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.training import NonFiniteLoss, TrainingOptions, learning_rate_at, train

SENTENCE = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 60, dtype=np.uint8)
CONFIG = ReformerConfig(
    vocab_size=256, d_model=16, n_heads=2, n_layers=2, d_ff=32, max_length=64,
    lsh=LSHOptions.preset("strict", chunk_length=8),
)  # fmt: skip
HELD_OUT = torch.from_numpy(text.held_out_windows(SENTENCE, 64, 3))


def batch_at(step):
    return text.batches(SENTENCE, 64, 2, seed=0, step=step)


def run(steps=10, model=None, **options):
    model = ReformerLM(CONFIG) if model is None else model
    options = TrainingOptions(**{"steps": steps, "learning_rate": 1e-2, "warmup": 2, "evaluate_every": 4, **options})
    return model, train(model, batch_at, HELD_OUT, options, progress=False, report=lambda line: None)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_lowers_the_loss_and_records_it():
    model, result = run(steps=30)
    first, last = result.evaluations[0], result.evaluations[-1]
    assert first["bits_per_byte"] > 7.0
    assert last["bits_per_byte"] < first["bits_per_byte"] - 2.0
    assert [e["step"] for e in result.evaluations] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert [point["step"] for point in result.curve] == list(range(1, 31))
    assert result.steps == 30
    assert result.tokens == 30 * 2 * 64
    assert not result.interrupted
    assert model.training
    seconds = [point["seconds"] for point in result.curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= result.seconds


def test_bits_per_byte_is_the_loss_in_bits():
    model = ReformerLM(CONFIG).eval()
    with torch.no_grad():
        want = np.mean([model.loss(window[None]).item() for window in HELD_OUT]) / math.log(2)
    assert training.held_out_bits(model, HELD_OUT) == pytest.approx(want, rel=1e-12)


def test_same_seed_same_result_and_no_global_state():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model, result = run()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, repeated = run()
    assert torch.equal(weights(model), weights(again))
    assert [c["bits_per_byte"] for c in result.curve] == [c["bits_per_byte"] for c in repeated.curve]
    other, _ = run(seed=1)  # other rotations
    assert not torch.equal(weights(model), weights(other))


def test_evaluation_leaves_every_mode_as_it_was():
    model = ReformerLM(CONFIG)
    model.train()
    frozen = next(iter(model.children()))
    frozen.eval()
    before = [m.training for m in model.modules()]
    training.held_out_bits(model, HELD_OUT)
    generate(model, b"the", 2)
    assert [m.training for m in model.modules()] == before


class Constant(torch.nn.Module):
    """A model with one weight whose loss is given by a function of the weight and the number of the call."""

    def __init__(self, loss):
        super().__init__()
        self.weight, self.fn, self.calls = torch.nn.Parameter(torch.ones(())), loss, 0

    def loss(self, tokens, generator=None):
        if not self.training:
            return self.weight.detach() * 0.0
        self.calls += 1
        return self.fn(self.weight, self.calls)


@pytest.mark.parametrize(
    ("loss", "what"),
    [(lambda w, n: w * (math.nan if n == 3 else 1.0), "the loss is nan at step 3"),
     (lambda w, n: w * (math.inf if n == 3 else 1.0), "the loss is inf at step 3"),
     (lambda w, n: torch.sqrt(w - w.detach()) if n == 3 else w, "the norm of the gradient is inf at step 3")],
)  # fmt: skip
def test_non_finite_loss_stops_before_the_weights_change(loss, what):
    model = Constant(loss)
    with pytest.raises(NonFiniteLoss, match=f"{what} .*lower learning rate"):
        run(model=model)
    assert torch.isfinite(model.weight)
    assert model.weight != 1.0  # the steps before it counted


def test_non_finite_held_out_loss_is_an_error():
    model = Constant(lambda w, n: w)
    model.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match="held-out loss is nan after 0 steps"):
        run(model=model)


def test_stopping_keeps_what_was_done():
    model, calls = ReformerLM(CONFIG), []
    result = train(
        model, batch_at, HELD_OUT, TrainingOptions(steps=10), progress=False,
        should_stop=lambda: calls.append(1) or len(calls) > 3,
    )  # fmt: skip
    assert result.interrupted
    assert result.steps == 3


def test_a_time_budget_becomes_a_number_of_steps():
    lines, begun = [], time.perf_counter()
    options = TrainingOptions(minutes=2 / 60, warmup=10, evaluate_every=0)
    result = train(ReformerLM(CONFIG), batch_at, HELD_OUT, options, progress=False, report=lines.append)
    assert time.perf_counter() - begun < 4.0
    planned = int(lines[0].rpartition("--steps ")[2].rstrip(")"))
    assert result.steps > training.TIMED_STEPS
    if not result.replanned:
        assert result.steps == planned
        assert result.curve[-1]["learning_rate"] < 0.01 * options.learning_rate


def test_a_machine_that_slows_down_shortens_the_run():
    slow = Constant(lambda w, n: time.sleep(0.01 if n < 20 else 0.1) or w)
    begun = time.perf_counter()
    _, result = run(steps=None, minutes=2 / 60, model=slow, evaluate_every=0)
    assert time.perf_counter() - begun < 4.0
    assert result.replanned


def test_a_machine_that_gets_faster_lengthens_the_run():
    fast = Constant(lambda w, n: time.sleep(0.1 if n <= 10 else 0.005) or w)
    _, result = run(steps=None, minutes=3 / 60, model=fast, evaluate_every=0)
    assert result.replanned
    assert result.steps > 60  # the first ten steps alone promise about thirty
    assert 1.5 < result.seconds < 4.5


def test_a_budget_shorter_than_a_step_still_trains_one():
    assert run(steps=None, minutes=1e-6)[1].steps == 1


def test_schedules():
    rates = {
        name: [learning_rate_at(s, 50, TrainingOptions(steps=50, warmup=10, schedule=name)) / 2e-3 for s in range(50)]
        for name in ("cosine", "rsqrt", "constant")
    }
    for values in rates.values():
        np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10)
        assert max(values) == pytest.approx(1.0)
        assert all(b <= a for a, b in pairwise(values[9:]))
    assert rates["cosine"][29] == pytest.approx(0.5, abs=0.03)
    assert 0.0 < rates["cosine"][-1] < 0.01
    assert rates["rsqrt"][39] == pytest.approx(0.5)
    assert rates["constant"][-1] == 1.0
    assert learning_rate_at(30, None, TrainingOptions(minutes=1.0, warmup=10)) == 2e-3


@given(
    st.sampled_from([
        {}, {"steps": 3, "minutes": 1.0}, {"steps": 0}, {"steps": 2.0}, {"steps": True}, {"minutes": 0},
        {"minutes": -1.0}, {"minutes": math.nan}, {"steps": 1, "learning_rate": 0.0}, {"steps": 1, "clip": -1.0},
        {"steps": 1, "schedule": "linear"}, {"steps": 1, "warmup": 0}, {"steps": 1, "evaluate_every": -1},
        {"steps": 1, "quick_windows": 0}, {"steps": 1, "seed": -1}, {"steps": 1, "learning_rate": math.inf},
    ])
)  # fmt: skip
def test_bad_options_are_refused(bad):
    with pytest.raises((ValueError, TypeError)):
        TrainingOptions(**bad)


# ---- checkpoints


@pytest.fixture
def saved(tmp_path):
    model = ReformerLM(CONFIG)
    checkpoint.save(tmp_path / "run", model, CONFIG, {"note": "σ", "list": [1, 2.5, None]})
    return tmp_path / "run", model


def test_a_checkpoint_gives_the_same_model(saved):
    folder, model = saved
    loaded, meta = checkpoint.load(folder)
    assert meta["extra"] == {"note": "σ", "list": [1, 2.5, None]}
    assert loaded.config == CONFIG
    assert not loaded.training
    state, want = loaded.state_dict(), model.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[name], want[name]) for name in want)
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors"]  # no temporary file stays


def test_a_crash_while_writing_leaves_the_previous_checkpoint(saved, monkeypatch):
    folder, model = saved
    before = weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    real = checkpoint.os.replace
    for fails_at in (1, 2):
        calls = []

        def replace(a, b, calls=calls, fails_at=fails_at):
            calls.append(b)
            if len(calls) == fails_at:
                raise OSError(28, "No space left on device")
            real(a, b)

        monkeypatch.setattr(checkpoint.os, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(folder, model, CONFIG)
        assert torch.equal(weights(checkpoint.load(folder)[0]), before)
    monkeypatch.setattr(checkpoint.os, "replace", real)
    checkpoint.save(folder, model, CONFIG)
    assert torch.equal(weights(checkpoint.load(folder)[0]), weights(model))
    assert len(list(folder.iterdir())) == 2  # the old weights are gone


def test_extra_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    for bad in ({"x": math.nan}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.save(tmp_path / "run", ReformerLM(CONFIG), CONFIG, bad)
    assert not list((tmp_path / "run").glob("*"))


def damage(folder, how):
    manifest = folder / checkpoint.MANIFEST
    meta = json.loads(manifest.read_text())
    path = folder / meta["weights"]["file"]
    content = bytearray(path.read_bytes())
    if how == "no folder":
        return folder / "nowhere"
    if how in ("flipped bit", "cut"):
        content[-1] ^= 1
        path.write_bytes(content if how == "flipped bit" else content[:-9])
    elif how == "no weights":
        path.unlink()
    elif how == "manifest cut":
        manifest.write_text(manifest.read_text()[:-20])
    elif how == "manifest no object":
        manifest.write_text("[1, 2]")
    elif how == "manifest nested":
        manifest.write_text("[" * 100_000)
    else:
        if how == "path out of the folder":
            meta["weights"]["file"] = "../" + path.name
        elif how == "format":
            meta["format"] = 99
        elif how == "config unknown":
            meta["config"]["colour"] = "blue"
        elif how == "config other shape":
            meta["config"] |= {"d_ff": 48}
        elif how == "no sha":
            del meta["weights"]["sha256"]
        manifest.write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [("no folder", "no checkpoint in"), ("flipped bit", "is damaged"), ("cut", "is damaged"),
     ("no weights", "does not exist"), ("manifest cut", "is not JSON"), ("manifest no object", "lacks 'weights'"),
     ("manifest nested", "is not JSON"), ("path out of the folder", "names the weights file"), ("format", "format 99"),
     ("config unknown", "no usable model.*colour"), ("config other shape", "no usable model.*size mismatch"),
     ("no sha", "lacks 'weights'")],
)  # fmt: skip
def test_damaged_checkpoints_are_refused(saved, how, message):
    folder = damage(saved[0], how)
    with pytest.raises(checkpoint.CheckpointError, match=f"(?s){message}"):
        checkpoint.load(folder)


# ---- sampling


def test_temperature_top_k_and_top_p_shape_the_distribution():
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64))

    def p(**options):
        return token_probabilities(logits, **options).tolist()

    assert p() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert p(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    assert p(temperature=0.0) == [0.0, 1.0, 0.0, 0.0]
    assert p(top_k=2) == pytest.approx([0.0, 4 / 7, 0.0, 3 / 7])
    assert p(top_k=99) == pytest.approx(p())
    assert p(top_p=0.39) == [0.0, 1.0, 0.0, 0.0]
    assert p(top_p=0.6) == pytest.approx([0.0, 4 / 7, 0.0, 3 / 7])
    assert p(top_p=0.75) == pytest.approx([0.0, 4 / 9, 2 / 9, 3 / 9])
    assert p(top_p=1.0) == pytest.approx(p())
    assert p(top_k=3, top_p=0.5) == pytest.approx([0.0, 4 / 7, 0.0, 3 / 7])  # top-p among what top-k keeps
    assert token_probabilities(torch.zeros(4), top_k=2).tolist() == [0.5, 0.5, 0.0, 0.0]  # a tie: exactly k
    assert token_probabilities(logits * 1e4, temperature=1e-3).tolist() == [0.0, 1.0, 0.0, 0.0]  # no overflow


def test_samples_follow_the_distribution():
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3])).expand(20_000, 4)
    drawn = sample_token(logits, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.bincount(drawn.numpy(), minlength=4) / 20_000, [0.1, 0.4, 0.2, 0.3], atol=0.015)


def test_generate_is_repeatable_and_touches_no_global_state():
    model = ReformerLM(CONFIG)
    state = torch.get_rng_state()
    shown = []
    first = generate(model, b"the ", 12, generator=torch.Generator().manual_seed(3), on_token=shown.append)
    assert torch.equal(first, generate(model, b"the ", 12, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, generate(model, b"the ", 12, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.int64
    assert bytes(first[:4].tolist()) == b"the "
    assert first[4:].tolist() == shown
    assert torch.equal(generate(model, b"the ", 0), torch.tensor(list(b"the ")))


def test_greedy_takes_the_largest_logit():
    model = ReformerLM(CONFIG).eval()
    tokens = generate(model, torch.arange(40), 24, temperature=0.0)
    for n in range(40, 64):
        with torch.no_grad():
            assert tokens[n] == model(tokens[None, :n])[0, -1].argmax()


@pytest.mark.parametrize(
    ("prompt", "options"),
    [(b"", {}), (torch.tensor([], dtype=torch.int64), {}), (torch.tensor([[1]]), {}), (torch.tensor([1.0]), {}),
     ("text", {}), (torch.tensor([256]), {}), (torch.tensor([-1]), {}), (b"a", {"temperature": -1.0}),
     (b"a", {"temperature": math.nan}), (b"a", {"top_k": 0}), (b"a", {"top_k": 1.5}), (b"a", {"top_p": 0.0}),
     (b"a", {"top_p": 1.1}), (b"a", {"max_new_tokens": -1}), (b"a", {"generator": 7})],
)  # fmt: skip
def test_generate_refuses(prompt, options):
    with pytest.raises((ValueError, TypeError)):
        generate(ReformerLM(CONFIG), prompt, **{"max_new_tokens": 1, **options})
