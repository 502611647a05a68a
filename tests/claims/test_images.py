"""The claims about images: data of every kind, completions, and what is recorded of them."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from reformer_lab.claims import claim, images, plots
from reformer_lab.claims.experiment import Context, Interrupted, make_record, planned, read_config, run_here
from reformer_lab.data import images as data
from reformer_ref import generation
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from tests.pictures import drawn


def small_settings(name="images"):
    return images.sub_runs(read_config(name, smoke=True))["seed0"]


def idx_file(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    """A folder in MNIST's form, with images of 6 × 4 pixels."""
    rng = np.random.default_rng(0)
    for name, n in (("train-images-idx3-ubyte.gz", 30), ("t10k-images-idx3-ubyte.gz", 5)):
        idx_file(tmp_path / name, rng.integers(0, 256, (n, 6, 4)).astype(np.uint8))
    return tmp_path


def model_of(pattern=("local", "lsh"), window="rank", levels=4, size=(6, 4), seed=0):
    settings = {"seed": seed, "data": {"levels": levels}, "model": {
        "d_model": 16, "n_heads": 2, "n_layers": 2, "pattern": pattern, "axial_dims": [8, 8],
        "lsh": {"window": window, "chunk_length": 4},
    }}  # fmt: skip
    return ReformerLM(images.model_config(settings, size)).eval()


# Data


def test_letters_of_a_run_are_a_function_of_the_step():
    first, second = images.Data(small_settings()), images.Data(small_settings())
    for a, b in zip(first.batch_at(5), second.batch_at(5), strict=True):
        assert a.shape == (2, 28 * 28)
        assert a.dtype == torch.int64
        assert torch.equal(a, b)
    assert not torch.equal(first.batch_at(5)[0], first.batch_at(6)[0])
    assert int(first.batch_at(0)[1].max()) <= 7


def test_held_out_letters_are_the_same_for_every_seed():
    first, other = images.Data(small_settings()), images.Data({**small_settings(), "seed": 1})
    np.testing.assert_array_equal(first.held_out, other.held_out)
    assert not np.array_equal(first.counted, other.counted)
    assert not torch.equal(first.batch_at(0)[1], other.batch_at(0)[1])


def test_a_folder_of_the_users_is_taken(folder):
    stored = images.Data(small_settings(), folder)
    assert stored.size == (6, 4)
    assert stored.held_out.shape == (3, 6, 4)
    assert stored.counted.shape == (20, 6, 4)
    assert stored.batch_at(0)[0].shape == (2, 24)
    rows = {tuple(row) for row in data.grey_levels(stored.train, 8).reshape(-1, 24).tolist()}
    assert all(tuple(row) in rows for step in range(5) for row in stored.batch_at(step)[1].tolist())


def test_one_file_is_split(folder):
    stored = images.Data(small_settings(), folder / "train-images-idx3-ubyte.gz")
    assert len(stored.train) == 27
    assert stored.held_out.shape == (3, 6, 4)


def test_missing_fashion_mnist_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "DEBIAN", tmp_path / "nothing")
    settings = claim("fashion").sub_runs(read_config("fashion"))["seed0"]
    with pytest.raises(ValueError, match=r"dataset-fashion-mnist.*--data FOLDER"):
        images.Data(settings)


# Completions


@pytest.mark.parametrize(("pattern", "window"), [(("local", "lsh"), "rank"), (("lsh",), "chunk"), (("dense",), "rank")])
def test_completions_are_what_the_full_forward_pass_says(pattern, window):
    """Each pixel is drawn from the probabilities that the model gives for exactly the pixels before
    it.
    """
    model, given = (
        model_of(pattern, window),
        data.grey_levels(np.random.default_rng(0).integers(0, 256, (2, 6, 4)).astype(np.uint8), 4),
    )
    out = images.complete(model, given, 3, temperature=0.0)
    assert out.shape == (2, 3, 6, 4)
    assert out.dtype == np.uint8
    for i, k in np.ndindex(2, 3):
        np.testing.assert_array_equal(out[i, k, :3], given[i, :3])
        tokens, targets = map(torch.from_numpy, data.to_tokens(out[i, k][None]))
        with torch.no_grad():
            for place in range(12, 24):
                best = model(tokens[:, : place + 1])[0, -1].argmax()
                assert int(best) == int(targets[0, place])


def test_completions_are_drawn_with_the_generator_alone():
    model, given = model_of(), np.zeros((2, 6, 4), np.uint8)
    state = torch.get_rng_state()
    draws = [images.complete(model, given, 4, 1.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert len({completion.tobytes() for completion in draws[0][0]}) > 1  # several completions of one image
    assert torch.equal(torch.get_rng_state(), state)


def test_strict_models_complete_from_the_cache(monkeypatch):
    monkeypatch.setattr(generation.Recomputer, "__init__", None)
    assert images.complete(model_of(), np.zeros((1, 6, 4), np.uint8), 1, 0.0).shape == (1, 1, 6, 4)


def test_bits_are_those_of_the_loss():
    model, held_out = (
        model_of(),
        data.grey_levels(np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8), 4),
    )
    whole, lower = images.bits_of(model, held_out, Context(None), batch=2)
    tokens, targets = map(torch.from_numpy, data.to_tokens(held_out))
    with torch.no_grad():
        assert whole == pytest.approx(model.loss(tokens, targets).item() / np.log(2), rel=1e-5)
        targets[:, :12] = -100
        assert lower == pytest.approx(model.loss(tokens, targets).item() / np.log(2), rel=1e-5)


def test_arrays_come_back_from_the_record():
    array = np.arange(60, dtype=np.uint8).reshape(3, 5, 4)
    np.testing.assert_array_equal(images.unpacked(json.loads(json.dumps(images.packed(array)))), array)


# The whole claim


def test_the_claim_on_a_users_folder(folder, tmp_path):
    config = read_config("images", smoke=True)
    runs = planned(images, config, folder)
    done = [run_here(images, n, s, Context(tmp_path / n, data=folder, report=str)) for n, s in runs.items()]
    record = make_record("images", images, config, runs, done, "reformer-ref reproduce images", True)
    record = json.loads(json.dumps(record))
    result = record["runs"][0]["result"]
    assert result["size"] == [6, 4]
    assert result["bits"]["model"][0] > 0
    originals, completions = (images.unpacked(result["gallery"][name]) for name in ("originals", "completions"))
    np.testing.assert_array_equal(completions[:, :, :3], np.repeat(originals[:, None, :3], 2, 1))
    assert all(folder.name in row["claim"] for row in images.rows(record))
    assert drawn(plots.images_gallery(record))["images"] == 2
    assert drawn(plots.images_bits(record))["Reformer, whole"] == pytest.approx(result["bits"]["model"][0], rel=1e-3)


def test_a_stop_is_heard_while_completing():
    context = Context(None, should_stop=lambda: True)
    with pytest.raises(Interrupted):
        images.complete(model_of(), np.zeros((1, 6, 4), np.uint8), 1, 0.0, check_stop=context.check_stop)


def test_the_configurations_fit_the_images():
    for name in ("images", "fashion"):
        settings = images.sub_runs(read_config(name))["seed0"]
        config = images.model_config(settings, (28, 28))
        assert isinstance(config, ReformerConfig)
        assert config.axial_shape == (28, 28)
        assert config.max_length == 28 * 28
        assert config.local.chunk_length == 28
        assert generation.cache_unsupported_reason(config) is None
