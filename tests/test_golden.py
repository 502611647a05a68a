"""The values of the authors' own code (see golden/README.md), reproduced by the spec, the plain and the streaming
versions in float64.
"""

from pathlib import Path

import numpy as np
import pytest
import reformer_ref.attention.pytorch as attention_pytorch
import reformer_ref.attention.spec as attention_spec
import reformer_ref.chunking.pytorch as chunking_pytorch
import reformer_ref.chunking.spec as chunking_spec
import reformer_ref.hashing.pytorch as hashing_plain
import reformer_ref.hashing.spec as hashing_spec
import reformer_ref.hashing.streaming as hashing_streaming
import reformer_ref.local_attention.pytorch as local_plain
import reformer_ref.local_attention.spec as local_spec
import reformer_ref.local_attention.streaming as local_streaming
import reformer_ref.lsh_attention.pytorch as lsh_plain
import reformer_ref.lsh_attention.spec as lsh_spec
import reformer_ref.lsh_attention.streaming as lsh_streaming
import torch
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.testing import as_numpy, autograd_vjp, expect_close, expect_equal, to_torch

GOLDEN = Path(__file__).parent / "golden"
PREFIX = "trax_lsh_"
# A row that sees only itself was pushed away by −1e5 in every round: with two rounds float64 itself
# leaves about 2e-12.
EXACT, SELF_ONLY, FLOAT32 = 1e-12, 1e-11, 1e-5

BOTH = pytest.mark.parametrize("version", ["spec", "pytorch"])
ALL_VERSIONS = pytest.mark.parametrize("version", ["spec", "plain", "streaming"])
LSH = {"plain": lsh_plain.lsh_attention, "streaming": lsh_streaming.lsh_attention}
LOCAL = {"plain": local_plain.local_attention, "streaming": local_streaming.local_attention}
HASH = {"spec": hashing_spec.hash_vectors} | {
    name: as_numpy(module.hash_vectors) for name, module in (("plain", hashing_plain), ("streaming", hashing_streaming))
}


def files(pattern):
    """A test for every recorded file of this name."""
    names = sorted(p.stem.removeprefix(PREFIX) for p in GOLDEN.glob(f"{PREFIX}{pattern}.npz"))
    return pytest.mark.parametrize("name", names)


def load(name):
    """The arrays of a file; floats as float64, scalars as Python values."""
    with np.load(GOLDEN / f"{PREFIX}{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in arrays.items()}
    return {key: a.item() if a.ndim == 0 else a for key, a in arrays.items()}


def without_offsets(buckets, per_round):
    """Buckets (…, n_hashes, L) from the recorded ones, which count on from round to round."""
    return buckets - per_round * np.arange(buckets.shape[-2])[:, None]


def lsh(version, qk, v, buckets, options, mask, ct):
    """(out, d_qk, d_v) as arrays."""
    if version == "spec":
        out = lsh_spec.lsh_attention(qk, v, buckets, options, mask)
        return out, *lsh_spec.lsh_attention_vjp(qk, v, buckets, options, ct, mask)
    rest = to_torch(buckets), options, None if mask is None else to_torch(mask)
    out, grads = autograd_vjp(lambda q, v: LSH[version](q, v, *rest), [qk, v], ct)
    return out, *grads


def expect_rows(name, got, want, only_self, tolerance=EXACT):
    """Rows at the tolerance, those that see only themselves at 1e-11 at best; alone bool (rows,)."""
    expect_close(name, got[~only_self], want[~only_self], tolerance)
    expect_close(f"{name}, rows that see only themselves", got[only_self], want[only_self], max(tolerance, SELF_ONLY))


def sees_only_itself(buckets, options, mask=None):
    """bool (…, L): rows where the self rule shows a token itself."""
    return np.einsum("...ii->...i", lsh_spec.visible_counts(buckets, options, mask)) > 0


def test_no_recorded_file_is_forgotten():
    prefixes = ("head_", "v1_", "layer_lsh_", "layer_local_", "predict_local", "hash", "parts", "x")
    elsewhere = {"axial": "positions", "reversible": "reversible"}
    for path in GOLDEN.glob("*.npz"):
        name = path.stem.removeprefix(PREFIX)
        if name in elsewhere:
            assert path.stem in (Path(__file__).parent / elsewhere[name] / "test_golden.py").read_text(encoding="utf-8")
        else:
            assert name.startswith(prefixes), f"{path.name} is compared by no test"
    assert len(list(GOLDEN.glob("*.npz"))) >= 20


# LSH attention: one head of the last code, and of the code of the paper's time


def head(name):
    z = load(name)
    z["mask"] = z["mask"] if z["masked"] else None
    z["per_round"] = 17 if z["masked"] else 16  # padding has a bucket of its own
    z["buckets"] = without_offsets(z["buckets"].reshape(z["n_hashes"], -1), z["per_round"])
    z["options"] = LSHOptions.preset(
        "trax",
        n_hashes=z["n_hashes"],
        chunk_length=z["chunk_len"],
        chunks_before=z["n_chunks_before"],
        chunks_after=z["n_chunks_after"],
        causal=z["causal"],
    )
    z["rows"] = np.ones(len(z["qk"]), bool) if z["mask"] is None else z["mask"]
    z["only_self"] = sees_only_itself(z["buckets"], z["options"], z["mask"])
    return z


@files("head_*")
@ALL_VERSIONS
def test_head_hash_and_sort(name, version):
    z = head(name)
    hash_vectors = HASH[version]
    sort_by_bucket = chunking_spec.sort_by_bucket if version == "spec" else as_numpy(chunking_pytorch.sort_by_bucket)
    got = hash_vectors(z["qk"], z["rotations"].transpose(1, 0, 2), 16)
    expect_equal("buckets", got[:, z["rows"]], z["buckets"][:, z["rows"]])
    expect_equal("order", sort_by_bucket(got, z["mask"]).ravel(), z["st"])


@files("head_*")
@ALL_VERSIONS
def test_head(name, version):
    z = head(name)
    got = lsh(version, z["qk"], z["v"], z["buckets"], z["options"], z["mask"], z["ct"])
    for key, value in zip(("out", "d_qk", "d_v"), got, strict=True):
        expect_rows(key, value[z["rows"]], z[f"{key}_f64"][z["rows"]], z["only_self"][z["rows"]])


@files("head_*")
@pytest.mark.parametrize("version", LSH)
def test_head_in_float32(name, version):
    """The authors' float32 is wrong by up to 1 % in rows that see only themselves: not compared."""
    z = head(name)
    out = as_numpy(LSH[version], torch.float32)(z["qk"], z["v"], z["buckets"], z["options"], z["mask"])
    rows = z["rows"] & ~z["only_self"]
    expect_close("out", out[rows], z["out"][rows], FLOAT32)
    expect_close("rows that see only themselves", out[z["only_self"]], z["v"][z["only_self"]], 1e-7)


@files("head_*")
def test_head_round_by_round(name):
    """The record's weights are shares of the one softmax.

    In each round they give the authors' output of that round, and add up to exp(log-sum-exp of the
    round − log-sum-exp of all rounds): to nothing where a round shows only the token itself.
    """
    z = head(name)
    tensors = (to_torch([z["qk"], z["v"], z["buckets"]]), None if z["mask"] is None else to_torch(z["mask"]))
    _, record = lsh_plain.lsh_attention(*tensors[0], z["options"], tensors[1], return_record=True)
    positions, weights = (record.queries.numpy().ravel(), record.weights.numpy())  # (n_hashes·L,), (n_hashes, …)
    expect_equal("positions in sorted order", positions, z["st"])
    values = z["v"] if z["mask"] is None else z["v"] * z["mask"][:, None]
    out = (weights @ values[record.keys.numpy()]).reshape(len(positions), -1)
    row_sum = weights.sum(-1).ravel()
    lse = np.zeros((z["n_hashes"], len(z["v"])))
    lse[np.arange(len(positions)) // len(z["v"]), positions] = z["sorted_lse_f64"]
    total = np.log(np.exp(lse - lse.max(0)).sum(0)) + lse.max(0)
    rows = z["rows"][positions] & ~z["only_self"][positions]
    expect_close("share of each round", row_sum[rows], np.exp(z["sorted_lse_f64"] - total[positions])[rows], EXACT)
    rows &= z["sorted_lse_f64"] > -1e4  # the round shows something but self
    expect_close("output of each round", out[rows] / row_sum[rows, None], z["sorted_out_f64"][rows], EXACT)


@files("v1_*")
@ALL_VERSIONS
def test_v1(name, version):
    """Within buckets and without duplicates is the default of the paper's time: the preset "paper"."""
    z = load(name)
    across, duplicates = bool(z["attend_across_buckets"]), bool(z["allow_duplicate_attention"])
    options = LSHOptions(
        n_hashes=z["n_hashes"],
        chunk_length=z["chunk_len"],
        within_bucket=not across,
        count_once=not duplicates,
        wrap=across or duplicates,
    )
    if not across and not duplicates:
        assert options == LSHOptions.preset("paper", n_hashes=z["n_hashes"], chunk_length=z["chunk_len"])
    buckets = z["buckets"].reshape(z["n_hashes"], -1)  # offsets are no harm: buckets are only compared within a round
    only_self = sees_only_itself(buckets, options)
    tolerance = EXACT if duplicates else 1e-8
    got = lsh(version, z["qk"], z["v"], buckets, options, None, z["ct"])
    for key, value in zip(("out", "d_qk", "d_v"), got, strict=True):
        expect_rows(key, value, z[f"{key}_f64"], only_self, tolerance)
    if version != "spec":
        out = as_numpy(LSH[version], torch.float32)(z["qk"], z["v"], buckets, options)
        expect_close("out in float32", out[~only_self], z["out"][~only_self], FLOAT32)


# Whole attention layers: projections per head, attention, output projection summed over heads


def layer(version, z, attend, attend_vjp, shared):
    """out and gradients of x and of the weights. attend(q, k, v), or (q, v) if shared; (2, 2, L, d)
    each.
    """
    x, ct, names = load("x")["x"], z["ct"], ["w_q", "w_v"] if shared else ["w_q", "w_k", "w_v"]
    if version != "spec":

        def whole(x, w_o, *weights):
            heads = attend(*(torch.einsum("bld,hde->bhle", x, w) for w in weights))
            return torch.einsum("bhle,hed->bld", heads, w_o)

        out, grads = autograd_vjp(whole, [x, z["w_o"], *(z[n] for n in names)], ct)
        return dict(zip(("out", "d_x", "d_w_o", *(f"d_{n}" for n in names)), (out, *grads), strict=True))
    projected = [np.einsum("bld,hde->bhle", x, z[n]) for n in names]
    heads = attend(*projected)
    d_heads = attend_vjp(*projected, np.einsum("bld,hed->bhle", ct, z["w_o"]))
    got = {f"d_{n}": np.einsum("bld,bhle->hde", x, d) for n, d in zip(names, d_heads, strict=True)}
    got["out"] = np.einsum("bhle,hed->bld", heads, z["w_o"])
    got["d_x"] = sum(np.einsum("bhle,hde->bld", d, z[n]) for n, d in zip(names, d_heads, strict=True))
    got["d_w_o"] = np.einsum("bhle,bld->hed", heads, ct)
    return got


def expect_layer(got, z, only_self=None, weights=EXACT):
    only_self = np.zeros(got["out"].shape[:2], bool) if only_self is None else only_self
    for key, value in got.items():
        if key in ("out", "d_x"):
            expect_rows(key, value, z[f"{key}_f64"], only_self)
        else:
            expect_close(key, value, z[f"{key}_f64"], weights)
    expect_close("out, recorded in float32", got["out"][~only_self], z["out"][~only_self], FLOAT32)


@files("layer_lsh_*")
@ALL_VERSIONS
def test_layer_lsh(name, version):
    z, masked = load(name), "masked" in name
    n_hashes = z["buckets"].shape[1] // 64
    # Example by example, head by head. n_buckets=[4, 4], and one more for padding.
    buckets = without_offsets(z["buckets"].reshape(2, 2, n_hashes, 64), 17 if masked else 16)
    mask = load("x")["mask"][:, None] if masked else None
    options = LSHOptions.preset(
        "trax", n_hashes=n_hashes, chunk_length=8, causal="causal" in name, chunks_after=0 if "causal" in name else 1
    )
    if version == "spec":
        got = layer(
            version,
            z,
            lambda q, v: lsh_spec.lsh_attention(q, v, buckets, options, mask),
            lambda q, v, d: lsh_spec.lsh_attention_vjp(q, v, buckets, options, d, mask),
            shared=True,
        )
    else:
        rest = to_torch(buckets), options, None if mask is None else to_torch(mask)
        got = layer(version, z, lambda q, v: LSH[version](q, v, *rest), None, shared=True)
    only_self = sees_only_itself(buckets, options, None if mask is None else np.broadcast_to(mask, (2, 2, 64))).any(1)
    # gradients of weights are sums over all rows
    expect_layer(got, z, only_self, SELF_ONLY if only_self.any() else EXACT)


@files("layer_local_*_chunk*")
@ALL_VERSIONS
def test_layer_local(name, version):
    z = load(name)
    causal = "causal" in name
    options = LocalOptions(chunk_length=8, chunks_before=1, chunks_after=0 if causal else 1, causal=causal, wrap=True)
    if version == "spec":
        got = layer(
            version,
            z,
            lambda q, k, v: local_spec.local_attention(q, k, v, options),
            lambda q, k, v, d: local_spec.local_attention_vjp(q, k, v, options, d),
            shared=False,
        )
    else:
        got = layer(version, z, lambda q, k, v: LOCAL[version](q, k, v, options), None, shared=False)
    expect_layer(got, z)


@files("layer_local_causal_dense_sharedqk")
@BOTH
def test_layer_dense_shared_qk(name, version):
    z = load(name)
    if version == "spec":
        functions = attention_spec.shared_qk_attention, attention_spec.shared_qk_attention_vjp
    else:
        functions = attention_pytorch.shared_qk_attention, None
    expect_layer(layer(version, z, *functions, shared=True), z)


@ALL_VERSIONS
def test_decoding_one_token_at_a_time_is_local_attention(version):
    """Memory 16, 8 of them dropped whenever it is full: the chunk of the token and the one before,
    as in training.
    """
    z = load("predict_local")
    q, k, v = (np.einsum("bld,hde->bhle", z["x"], z[w]) for w in ("w_q", "w_k", "w_v"))
    attend = local_spec.local_attention if version == "spec" else as_numpy(LOCAL[version])
    heads = attend(q, k, v, LocalOptions(chunk_length=z["chunk_len"]))
    expect_close("out", np.einsum("bhle,hed->bld", heads, z["w_o"]), z["out"], 1e-6)  # recorded in float32 only


# The pieces


@ALL_VERSIONS
def test_hash(version):
    z = load("hash")
    hash_vectors = HASH[version]
    for n_hashes in (1, 2, 4):
        for tag, n_buckets in (("16", 16), ("4x6", (4, 6)), ("4x4x2", (4, 4, 2))):
            assert z[f"n_h{n_hashes}_{tag}"] == np.prod(n_buckets)
            rotations = z[f"rot_h{n_hashes}_{tag}"].transpose(1, 0, 2)  # (n_hashes, d, Σfactors/2)
            got = hash_vectors(z["vecs"], rotations, n_buckets)
            expect_equal(f"{n_hashes} rounds, {n_buckets} buckets", got, z[f"buckets_h{n_hashes}_{tag}"])


@ALL_VERSIONS
def test_hash_of_a_layer_sorts_alike(version):
    """Round offsets and a bucket for padding are the authors' way to one sort key; here the two
    stay apart.
    """
    z = load("hash")
    hash_vectors = HASH[version]
    sort_by_bucket = chunking_spec.sort_by_bucket if version == "spec" else as_numpy(chunking_pytorch.sort_by_bucket)
    buckets = hash_vectors(z["vecs"], z["rot_h2_16"].transpose(1, 0, 2), 16)
    expect_equal("buckets", buckets, without_offsets(z["layer_h2_16"].reshape(2, 64), 16))
    recorded = without_offsets(z["layer_h2_16_masked"].reshape(2, 64), 17)
    expect_equal("buckets with padding", np.where(z["mask"], buckets, 16), recorded)
    for key, mask in (("layer_h2_16", None), ("layer_h2_16_masked", z["mask"])):
        want = np.argsort(z[key].reshape(2, 64), axis=-1, kind="stable")
        expect_equal(f"order by {key}", sort_by_bucket(buckets, mask), want)


def test_default_n_buckets():
    z = load("hash")
    for length, (first, second) in zip(z["default_lengths"], z["default_n_buckets"], strict=True):
        got = hashing_spec.default_n_buckets(int(length), z["default_chunk_len"])
        assert got == ((first, second) if second else first)


@BOTH
def test_look_adjacent(version):
    z = load("parts")
    look = chunking_spec.look_adjacent if version == "spec" else as_numpy(chunking_pytorch.look_adjacent)
    for before, after in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0)):
        got = look(z["x"], before, after, wrap=True)
        expect_equal(f"{before} before, {after} after", got, z[f"look_b{before}a{after}"])


@BOTH
def test_length_normalized(version):
    """The authors keep keys at length √d and divide by √d later."""
    z = load("parts")
    normalize = attention_spec.normalize_keys if version == "spec" else as_numpy(attention_pytorch.normalize_keys)
    expect_close("√d · k̂", 4 * normalize(z["vecs"]), z["length_normalized"], 1e-6)  # float32 only


@BOTH
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_masked_scores(version, causal, exclude_self, masked):
    """Counts of visible pairs, and self as a last resort, give the softmax of the authors'
    penalised scores.
    """
    z = load("parts")
    scores, recorded = z["dots"], z[f"mask_c{causal:d}e{exclude_self:d}m{masked:d}"]
    seen = (z["kv_info"] <= z["q_info"]) if causal else np.ones(scores.shape, bool)
    seen = seen & (z["kv_info"] > 0) if masked else seen
    is_self = seen & (z["kv_info"] == z["q_info"])
    if exclude_self:
        others = seen & ~is_self
        seen = np.where(others.any(-1, keepdims=True), others, is_self)
    attend = attention_spec.attend if version == "spec" else as_numpy(attention_pytorch.attend)
    keys = np.broadcast_to(np.eye(7), (2, 7, 7))  # so that scores, values and weights are what they are called
    _, weights = attend(scores, keys, keys, seen.astype(np.int64))
    want = np.exp(recorded - recorded.max(-1, keepdims=True))
    assert seen.any(-1).all()
    expect_close("weights", weights, want / want.sum(-1, keepdims=True), 1e-6)  # float32 only
