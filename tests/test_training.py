"""The training loop, checkpoints and sampling, on a model of a few thousand weights."""

import json
import math
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from reformer_lab.data import text
from reformer_lab.training import checkpoint
from reformer_lab.training import loop as training
from reformer_lab.training import run as training_run
from reformer_lab.training.loop import NonFiniteLoss, train
from reformer_lab.training.schedule import PRESETS, TIMED_STEPS, TrainingOptions, learning_rate_at
from reformer_ref.generation import generate, sample_token, token_probabilities
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    assert first["bits"] > 7.0
    assert last["bits"] < first["bits"] - 2.0
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
    assert [c["bits"] for c in result.curve] == [c["bits"] for c in repeated.curve]
    other, _ = run(seed=1)  # other rotations
    assert not torch.equal(weights(model), weights(other))


@pytest.mark.parametrize(("precision", "wanted"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_one_process_computes_in_the_precision_asked_for(precision, wanted):
    used = set()

    class Watched(ReformerLM):
        def loss(self, *args, **kwargs):
            used.add(torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype)
            return super().loss(*args, **kwargs)

    run(steps=1, model=Watched(CONFIG), precision=precision)
    assert used == {wanted}


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
    """A model with one weight whose loss is given by a function of the weight and the number of the
    call.
    """

    def __init__(self, loss):
        super().__init__()
        self.weight, self.fn, self.calls = torch.nn.Parameter(torch.ones(())), loss, 0

    def loss(self, tokens, generator=None):
        if not self.training:
            return self.weight.detach() * 0.0
        self.calls += 1
        return self.fn(self.weight, self.calls)


@pytest.mark.parametrize(
    ("loss", "message"),
    [(lambda w, n: w * (math.nan if n == 3 else 1.0), "the loss is nan at step 3"),
     (lambda w, n: w * (math.inf if n == 3 else 1.0), "the loss is inf at step 3"),
     (lambda w, n: torch.sqrt(w - w.detach()) if n == 3 else w, "the norm of the gradient is inf at step 3")],
)  # fmt: skip
def test_non_finite_loss_stops_before_the_weights_change(loss, message):
    model = Constant(loss)
    with pytest.raises(NonFiniteLoss, match=f"{message} .*lower learning rate"):
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
    assert result.steps > TIMED_STEPS
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


def test_presets_have_the_authors_peak_rates():
    # constant · min(step/warmup, 1) / sqrt(max(step, warmup)) with the constants of the authors'
    # configurations
    for name, constant in (("enwik8", 0.03125), ("imagenet64", 0.03125), ("wmt", 0.088), ("paper", 1.0)):
        options = TrainingOptions.preset(name, steps=10)
        for step in (1, options.warmup // 2, options.warmup, 4 * options.warmup):
            want = constant * min(step / options.warmup, 1.0) / math.sqrt(max(step, options.warmup))
            assert learning_rate_at(step - 1, 10**6, options) == pytest.approx(want, rel=1e-12)
    assert TrainingOptions.preset("paper", steps=10).optimizer == "adafactor"
    assert TrainingOptions.preset("wmt", steps=10, warmup=5).warmup == 5
    with pytest.raises(ValueError, match="preset must be one of 'paper', 'enwik8'"):
        TrainingOptions.preset("bert", steps=1)
    assert set(PRESETS) == {"paper", "enwik8", "imagenet64", "wmt"}


@given(
    st.sampled_from([
        {}, {"steps": 3, "minutes": 1.0}, {"steps": 0}, {"steps": 2.0}, {"steps": True}, {"minutes": 0},
        {"minutes": -1.0}, {"minutes": math.nan}, {"steps": 1, "learning_rate": 0.0}, {"steps": 1, "clip": -1.0},
        {"steps": 1, "schedule": "linear"}, {"steps": 1, "warmup": 0}, {"steps": 1, "evaluate_every": -1},
        {"steps": 1, "quick_windows": 0}, {"steps": 1, "seed": -1}, {"steps": 1, "learning_rate": math.inf},
        {"steps": 1, "optimizer": "sgd"}, {"steps": 1, "precision": "16"}, {"steps": 1, "accumulate": 0},
        {"steps": 1, "beta2": 1.0}, {"steps": 1, "checkpoint_every": -1}, {"steps": 1, "checkpoint_minutes": math.nan},
    ])
)  # fmt: skip
def test_bad_options_are_refused(bad):
    with pytest.raises((ValueError, TypeError)):
        TrainingOptions(**bad)


# ---- a run in a folder, and going on with it


def weights_and_state(folder, step):
    state = checkpoint.read(folder / f"checkpoints/step-{step:09d}.safetensors")
    return {**state.weights, **state.training}


def run_in(folder, steps=12, stop_after=None, model=None, at=batch_at, about=None, **options):
    model, calls = ReformerLM(replace(CONFIG, dropout=0.2)) if model is None else model, []
    options = {
        "steps": steps,
        "learning_rate": 1e-2,
        "warmup": 2,
        "evaluate_every": 4,
        "checkpoint_every": 3,
        **options,
    }
    lines = []
    result = train(
        model, at, HELD_OUT, TrainingOptions(**options), folder=folder, resume=True, progress=False,
        report=lines.append, about=about, should_stop=lambda: calls.append(1) or len(calls) > (stop_after or math.inf),
    )  # fmt: skip
    return result, lines


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adafactor"}, {"accumulate": 2}, {"precision": "64"}, {"precision": "bf16"},
     {"schedule": "rsqrt"}],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)  # fmt: skip
def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path, options):
    whole, _ = run_in(tmp_path / "whole", **options)
    first, lines = run_in(tmp_path / "parts", stop_after=5, **options)
    assert first.interrupted
    assert first.steps == 5
    assert lines == [f"no checkpoint in {tmp_path / 'parts'} yet: beginning at step 0"]
    second, lines = run_in(tmp_path / "parts", stop_after=2, **options)
    assert lines == ["going on after step 5 (step-000000005.safetensors)"]
    assert second.steps == 7
    last, _ = run_in(tmp_path / "parts", **options)
    assert not last.interrupted
    assert last.steps == 12
    assert last.tokens == whole.tokens
    want, got = (weights_and_state(tmp_path / name, 12) for name in ("whole", "parts"))
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [c["bits"] for c in last.curve] == [c["bits"] for c in whole.curve]
    assert [e["bits"] for e in last.evaluations] == [e["bits"] for e in whole.evaluations]
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()
    seconds = [c["seconds"] for c in last.curve]
    assert all(a < b for a, b in pairwise(seconds[5:]))


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first, _ = run_in(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    again, _ = run_in(tmp_path / "run")
    assert again.evaluations[-1]["bits"] == first.evaluations[-1]["bits"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_more_steps_go_on_where_the_schedule_allows_it(tmp_path):
    run_in(tmp_path / "run", steps=6, schedule="constant")
    result, _ = run_in(tmp_path / "run", steps=9, schedule="constant", checkpoint_every=0)
    assert result.steps == 9
    whole, _ = run_in(tmp_path / "whole", steps=9, schedule="constant")
    want, got = (weights_and_state(tmp_path / name, 9) for name in ("whole", "run"))
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [c["bits"] for c in result.curve] == [c["bits"] for c in whole.curve]


def test_another_run_is_refused_with_every_difference(tmp_path, monkeypatch):
    run_in(tmp_path / "run", steps=3, about={"text": {"bytes": 7}})
    config = replace(CONFIG, dropout=0.2, d_ff=48)
    with pytest.raises(ValueError, match="of another run") as error:
        run_in(tmp_path / "run", steps=4, clip=2.0, model=ReformerLM(config), about={"text": {"bytes": 8}})
    for part in ("config.d_ff is 32 in the checkpoint and 48 now", "options.clip is 1.0", "options.steps is 3",
                 "text.bytes is 7 in the checkpoint and 8 now"):  # fmt: skip
        assert part in str(error.value)
    assert "checkpoint_every" not in str(error.value)
    monkeypatch.setattr(training_run, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"reformer_ref is '.*' in the checkpoint and '99.0' now"):
        run_in(tmp_path / "run", steps=3, about={"text": {"bytes": 7}})


def test_damaged_checkpoints_are_set_aside_and_the_run_goes_on_before_them(tmp_path):
    run_in(tmp_path / "whole")
    run_in(tmp_path / "run", stop_after=7)
    newest = tmp_path / "run/checkpoints/step-000000007.safetensors"
    newest.write_bytes(newest.read_bytes()[:-40])
    _, lines = run_in(tmp_path / "run")
    assert "step-000000007.safetensors is damaged" in lines[0]
    assert "kept as step-000000007.safetensors.damaged" in lines[0]
    assert lines[1] == "going on after step 6 (step-000000006.safetensors)"
    want, got = (weights_and_state(tmp_path / name, 12) for name in ("whole", "run"))
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda t: t.update({"x:exp_avg": torch.ones(2)}), "x:exp_avg is .*, not None"),
     (lambda t: t.clear(), "state of this optimiser, .*exp_avg is None"),
     (lambda t: t.update({next(n for n in t if n.endswith("exp_avg")): torch.ones(5, 7)}), r"float32 \(5, 7\)"),
     (lambda t: t[next(n for n in t if n.endswith("exp_avg"))].view(-1)[:1].fill_(math.nan), "is infinite or NaN")],
)  # fmt: skip
def test_a_state_of_another_optimiser_is_refused(tmp_path, damage, message):
    run_in(tmp_path / "run", stop_after=4)
    newest, _ = checkpoint.newest(tmp_path / "run")
    damage(newest.training)
    checkpoint.save(
        tmp_path / "run/checkpoints", checkpoint.build(newest), step=5, training=newest.training, state=newest.state
    )
    with pytest.raises(checkpoint.CheckpointError, match=message):
        run_in(tmp_path / "run")


def test_a_run_whose_steps_were_all_left_out_goes_on(tmp_path):
    run_in(tmp_path / "run", stop_after=1)
    newest, _ = checkpoint.newest(tmp_path / "run")
    state = {**newest.state, "skipped": 1}  # by the scaling of fp16; the optimiser has no state then
    checkpoint.save(tmp_path / "run/checkpoints", checkpoint.build(newest), step=1, state=state)
    assert run_in(tmp_path / "run")[0].steps == 12


@pytest.mark.parametrize("name", ["metrics", "timings"])
@pytest.mark.parametrize(
    "change", [lambda content: content.replace(b'"step": 1,', b'"step": 7,'), lambda content: content[:-9]]
)
def test_lines_that_are_not_those_of_the_checkpoint_are_refused(tmp_path, name, change):
    run_in(tmp_path / "run", stop_after=4)
    path = tmp_path / f"run/{name}.jsonl"
    changed = change(path.read_bytes())
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=rf"{name}\.jsonl does not hold the {name} that the checkpoint"):
        run_in(tmp_path / "run")
    assert path.read_bytes() == changed  # nothing was cut off


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "timings.jsonl"])
def test_links_in_the_folder_of_a_run_are_not_followed(tmp_path, name):
    (tmp_path / "mine").write_text("not to be touched")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="cannot write to --out"):
        run_in(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "not to be touched"


def test_a_plain_checkpoint_is_no_run_to_go_on_with(tmp_path):
    checkpoint.save(tmp_path / "run/checkpoints", ReformerLM(CONFIG), step=3)
    with pytest.raises(checkpoint.CheckpointError, match=r"holds no run to go on with: about, .* are missing or wrong"):
        run_in(tmp_path / "run")


def test_a_loss_that_is_no_number_keeps_state_and_batch(tmp_path):
    model = ReformerLM(replace(CONFIG, dropout=0.2))

    def poisoned(step):
        if step == 7:
            with torch.no_grad():
                model.backbone.norm.weight.mul_(math.inf)
        return batch_at(step)

    with pytest.raises(NonFiniteLoss, match=r"at step 8 .*state and batch are kept"):
        run_in(tmp_path / "run", model=model, at=poisoned)
    kept = safetensors.torch.load_file(tmp_path / "run/failed/batch-000000008.safetensors")
    assert np.array_equal(kept["0"].numpy(), batch_at(7))
    note = json.loads((tmp_path / "run/failed/batch-000000008.json").read_text())
    assert note["step"] == 8
    assert "begin again with a lower learning rate" in note["error"]
    assert checkpoint.paths(tmp_path / "run/checkpoints")[0].name == "step-000000007.safetensors"


def test_numbers_that_overflow_on_the_way_count_as_a_diverged_loss(tmp_path):
    def diverging(step):
        if step == 5:
            with torch.no_grad():
                model.backbone.embedding.weight.fill_(math.inf)
        return batch_at(step)

    model = ReformerLM(replace(CONFIG, dropout=0.2))
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 6"):
        run_in(tmp_path / "run", model=model, at=diverging, evaluate_every=0)
    assert (tmp_path / "run/failed/batch-000000006.safetensors").exists()


def test_a_folder_that_is_moved_while_it_trains_is_noticed(tmp_path):
    def moving(step):
        if step == 4:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        return batch_at(step)

    with pytest.raises(checkpoint.CheckpointNotWritten, match="moved or removed while it trained"):
        run_in(tmp_path / "run", at=moving)
    assert not (tmp_path / "run").exists()
    assert checkpoint.newest(tmp_path / "elsewhere")[0].step == 3
    assert run_in(tmp_path / "elsewhere")[0].steps == 12


@pytest.mark.parametrize("state", ["where", "metrics", "tokens", "seconds", "evaluation_seconds", "total", "finished"])
@pytest.mark.parametrize("value", [None, {}, -3, "x"], ids=str)
def test_states_with_wrong_values_are_refused(tmp_path, state, value):
    run_in(tmp_path / "run", stop_after=4)
    newest, _ = checkpoint.newest(tmp_path / "run")
    if (state, value) in (("total", None), ("where", {})):
        return  # these are what they may be
    new = {**newest.state, state: value}
    checkpoint.save(tmp_path / "run/checkpoints", checkpoint.build(newest), step=4, training=newest.training, state=new)
    with pytest.raises(checkpoint.CheckpointError, match=f"holds no run to go on with: {state} are missing or wrong"):
        run_in(tmp_path / "run")


def test_fp16_is_not_silently_something_else_on_a_cpu():
    with pytest.raises(ValueError, match="precision fp16 needs a GPU"):
        run(precision="fp16")


def test_batches_of_several_tensors_count_by_weight(tmp_path):
    tokens = torch.from_numpy(batch_at(0))
    targets = torch.full_like(tokens, -100)
    targets[0, :10], targets[1, :30] = (tokens[0, :10], tokens[1, :30])  # rows that do not count the same

    def gradients(accumulate):
        model = ReformerLM(CONFIG)
        train(
            model, lambda step: (tokens, targets), [(tokens[0], targets[0])],
            TrainingOptions(steps=1, accumulate=accumulate, clip=1e5, learning_rate=1e-9, precision="64"),
            weight_of=lambda tokens, targets: int((targets != -100).sum()),
            progress=False,
        )  # fmt: skip
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    torch.testing.assert_close(gradients(2), gradients(1), rtol=1e-12, atol=1e-14)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 rows cannot be divided by 1 processes × 3 micro-batches"):
        run(accumulate=3)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    model = ReformerLM(CONFIG)
    result = train(
        model, batch_at, HELD_OUT, TrainingOptions(steps=3, evaluate_every=0), folder=tmp_path / "run",
        tensorboard=True, progress=False,
    )  # fmt: skip
    reader = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in reader.Scalars("bits")] == [1, 2, 3]
    np.testing.assert_allclose([e.value for e in reader.Scalars("bits")], [c["bits"] for c in result.curve], rtol=1e-6)
    assert {"held_out_bits", "learning_rate", "gradient_norm"} <= set(reader.Tags()["scalars"])


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
    printed = []
    first = generate(model, b"the ", 12, generator=torch.Generator().manual_seed(3), on_token=printed.append)
    assert torch.equal(first, generate(model, b"the ", 12, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, generate(model, b"the ", 12, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.int64
    assert bytes(first[:4].tolist()) == b"the "
    assert first[4:].tolist() == printed
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
