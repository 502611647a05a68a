"""The attention layers of transformers, live, in float64: outputs and gradients, given the same
rotations.
"""

import pytest
import torch
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.huggingface.weights import config_from_huggingface
from reformer_ref.local_attention import pytorch as local_plain
from reformer_ref.local_attention import spec as local_spec
from reformer_ref.local_attention import streaming as local_streaming
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import pytorch as lsh_plain
from reformer_ref.lsh_attention import spec as lsh_spec
from reformer_ref.lsh_attention import streaming as lsh_streaming
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.testing import expect_close, expect_equal

transformers = pytest.importorskip("transformers")
peer = pytest.importorskip("transformers.models.reformer.modeling_reformer")
pytestmark = pytest.mark.peers

TOLERANCE = 1e-10
B, HEADS, D, C = 2, 3, 5, 4  # sequences, heads, size of a head, chunk length


def hf_config(kind, causal, n_hashes=1, n_buckets=8, before=1, after=0):
    return transformers.ReformerConfig(
        attn_layers=[kind],
        is_decoder=causal,
        hidden_size=7,
        num_attention_heads=HEADS,
        attention_head_size=D,
        axial_pos_shape=[4, 16],
        axial_pos_embds_dim=[2, 5],
        max_position_embeddings=64,
        num_hashes=n_hashes,
        num_buckets=n_buckets,
        hash_seed=11,
        lsh_attention_probs_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        **{f"{kind}_attn_chunk_length": C, f"{kind}_num_chunks_before": before, f"{kind}_num_chunks_after": after},
    )


def run_theirs(layer, config, length, masked):
    """Their layer on random input: inputs, mask, cotangent, output and gradients of x and weights,
    and its buckets.
    """
    generator = torch.Generator().manual_seed(length)
    layer = layer(config).double()
    for p in layer.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(B, length, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    real = torch.arange(length) < torch.tensor([[length], [max(1, length - C - 1)]])  # padding on the right
    d_out = torch.randn(B, length, HEADS * D, generator=generator, dtype=torch.float64) * (
        real[..., None] | (not masked)
    )
    with torch.random.fork_rng():
        result = layer(x, attention_mask=real.long() if masked else None)
    out = result.hidden_states
    inputs = [x, *layer.parameters()]
    return (inputs, real if masked else None, d_out, out, torch.autograd.grad(out, inputs, d_out), result)


def heads(x, weight):
    return (x @ weight.T).unflatten(-1, (HEADS, D)).transpose(1, 2)  # (B, HEADS, L, D)


def expect_same(out, theirs, inputs, mask, d_out, grads):
    """Outputs of real tokens and gradients of everything; the worst relative error. out (B, HEADS,
    L, D).
    """
    out = out.transpose(1, 2).flatten(2)
    real = torch.ones(out.shape[:2], dtype=torch.bool) if mask is None else mask
    errors = [expect_close("out", out[real].detach(), theirs[real].detach(), TOLERANCE)]
    for i, (got, want) in enumerate(
        zip(torch.autograd.grad(out, inputs, d_out, retain_graph=True), grads, strict=True)
    ):
        errors.append(expect_close(f"gradient {i}", got, want, TOLERANCE))
    return max(errors)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_hashes", [1, 2, 4])
@pytest.mark.parametrize(
    ("causal", "before", "after", "n_buckets"),
    [(True, 1, 0, 8), (True, 2, 0, [4, 4]), (False, 1, 0, [2, 4, 2]), (False, 1, 1, [4, 4]), (False, 0, 2, 6)],
)
def test_lsh_self_attention(masked, n_hashes, causal, before, after, n_buckets):
    worst = 0.0
    for length in (1, 3, C, 8 * C):  # up to the chunk length they do without hashing
        config = hf_config("lsh", causal, n_hashes, n_buckets, before, after)
        inputs, mask, d_out, theirs, grads, result = run_theirs(peer.LSHSelfAttention, config, length, masked)
        options = config_from_huggingface(config).lsh
        assert options == LSHOptions.preset(
            "huggingface",
            n_hashes=n_hashes,
            n_buckets=tuple(n_buckets) if isinstance(n_buckets, list) else n_buckets,
            chunk_length=C,
            chunks_before=before,
            chunks_after=after,
            causal=causal,
        )
        width = (sum(n_buckets) if isinstance(n_buckets, list) else n_buckets) // 2
        drawn = torch.randn(HEADS, D, n_hashes, width, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
        q, v = heads(inputs[0], inputs[1]), heads(inputs[0], inputs[2])
        buckets = hash_vectors(q, drawn.transpose(1, 2), options.n_buckets)
        attend_to = None if mask is None else mask[:, None]
        if length > C:
            n = int(torch.tensor(options.n_buckets).prod())
            padding = torch.zeros(B, 1, 1, length, dtype=torch.bool) if mask is None else ~mask[:, None, None]
            offsets = (n + int(padding.any())) * torch.arange(n_hashes)[:, None]  # padding has a bucket of its own
            expect_equal("buckets", buckets.masked_fill(padding, n), result.buckets - offsets)
        for version in (lsh_plain, lsh_streaming):
            out = version.lsh_attention(q, v, buckets, options, attend_to)
            worst = max(worst, expect_same(out, theirs, inputs, mask, d_out, grads))
        arrays = [None if t is None else t.detach().numpy() for t in (q, v, buckets, attend_to)]
        by_spec = lsh_spec.lsh_attention(*arrays[:3], options, arrays[3])
        expect_close("spec", by_spec, out.detach(), 1e-12)
    print(f"transformers LSHSelfAttention: worst relative error {worst:.1e}")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("causal", "before", "after"), [(True, 1, 0), (True, 2, 0), (False, 1, 0), (False, 1, 1), (False, 0, 2)]
)
def test_local_self_attention(masked, causal, before, after):
    worst = 0.0
    for length in (1, 3, C, 2 * C, 6 * C):
        config = hf_config("local", causal, before=before, after=after)
        inputs, mask, d_out, theirs, grads, _ = run_theirs(peer.LocalSelfAttention, config, length, masked)
        options = config_from_huggingface(config).local
        assert options == LocalOptions(C, before, after, causal=causal, wrap=True)
        q, k, v = (heads(inputs[0], weight) for weight in inputs[1:])
        attend_to = None if mask is None else mask[:, None]
        for version in (local_plain, local_streaming):
            out = version.local_attention(q, k, v, options, attend_to)
            worst = max(worst, expect_same(out, theirs, inputs, mask, d_out, grads))
        arrays = [t.detach().numpy() for t in (q, k, v)]
        by_spec = local_spec.local_attention(*arrays, options, None if mask is None else attend_to.numpy())
        expect_close("spec", by_spec, out.detach(), 1e-12)
    print(f"transformers LocalSelfAttention: worst relative error {worst:.1e}")
