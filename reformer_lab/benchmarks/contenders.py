"""How each contender does the work of a point: ``build(name, point)`` makes the inputs and returns ``run()``.

A run starts without gradients and ends with them. Each contender gets its inputs in the layout that it likes best,
hashes with as many buckets as it chooses by itself, and draws its rotations inside the run.
"""

import logging
import math
import time

import torch
import torch.nn.functional as F
from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.streaming import block_size_for
from reformer_ref.memory import count_peak, predict_peak
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from torch import nn

from reformer_lab.benchmarks.cases import CHUNK, D_HEAD, FF_CHUNK, HEADS, MODEL

LEARNING_RATE = 1e-4


def build(name, point, device="cpu"):
    """``run()`` of contender ``name`` at ``point``: the work once, returning the tensors that it was done for.

    Inputs are made here. A model is made in its first run, so that the memory of a first run includes weights,
    gradients and optimiser.
    """
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if name == "matmul":
        return matmul(point, device)
    if point.kind == "step":
        make = {"ours": our_model, "reformer-pytorch": lucidrains_model, "huggingface": huggingface_model}[name]
        return step(make, point, device)
    if name.startswith("ours-"):
        return ours(name.removeprefix("ours-"), point, device)
    return {"reformer-pytorch": lucidrains, "huggingface": huggingface, "dense": dense}[name](point, device)


def predicted_bytes(name, point, device):
    """Memory above start that ours should take at its peak on ``device``, found without the device; None for others."""
    if name == "ours":
        return predict_peak(step_config(point), point.length, device=device).above_start_bytes
    if not name.startswith("ours-"):
        return None
    run = ours(name.removeprefix("ours-"), point, "meta", block_size=block_size_for(device))
    return count_peak(run, on="meta").above_start_bytes


# Attention: 8 heads × L × 64, forward and backward


def attention(attend, inputs):
    """The run of ``attend(*inputs)`` and its gradients with respect to all inputs."""
    d_out = torch.randn_like(inputs[-1], requires_grad=False)

    def run():
        for x in inputs:
            x.grad = None
        attend(*inputs).backward(d_out)
        return [x.grad for x in inputs]

    return run


def numbers(device, *shape, dtype=torch.float32):
    """Seeded normal numbers that want a gradient."""
    source = device if torch.device(device).type == "cuda" else "cpu"
    generator = torch.Generator(source).manual_seed(1)
    return torch.randn(*shape, generator=generator, device=source).to(device, dtype).requires_grad_()


def ours(preset, point, device, block_size=None):
    """Ours, with the options of a preset."""
    options = LSHOptions.preset(preset, n_hashes=point.n_hashes, chunk_length=CHUNK, causal=True)
    n_buckets = default_n_buckets(point.length, CHUNK)
    generator = torch.Generator().manual_seed(2)

    def attend(qk, v):
        rotations = random_rotations(generator, point.n_hashes, D_HEAD, n_buckets, HEADS, device=device)
        return lsh_attention(qk, v, hash_vectors(qk, rotations, n_buckets), options, block_size=block_size)

    return attention(attend, [numbers(device, 1, HEADS, point.length, D_HEAD) for _ in "qv"])


def lucidrains(point, device):
    """reformer-pytorch: its attention module takes (heads, L, d)."""
    from reformer_pytorch import LSHAttention

    layer = LSHAttention(bucket_size=CHUNK, n_hashes=point.n_hashes, causal=True).to(device)
    inputs = [numbers(device, HEADS, point.length, D_HEAD) for _ in "qv"]
    return attention(lambda qk, v: layer(qk, v)[0], inputs)


def huggingface(point, device, dtype=torch.float32):
    """transformers: its layer without the projections, which hand over ready-made vectors instead."""
    from transformers import ReformerConfig as Config
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    layer = LSHSelfAttention(
        Config(
            hidden_size=HEADS * D_HEAD, num_attention_heads=HEADS, attention_head_size=D_HEAD, is_decoder=True,
            num_hashes=point.n_hashes, num_buckets=None, lsh_attn_chunk_length=CHUNK, attn_layers=["lsh"],
            lsh_attention_probs_dropout_prob=0.0, max_position_embeddings=point.length,
        )
    ).to(device, dtype)  # fmt: skip
    inputs = [numbers(device, 1, point.length, HEADS * D_HEAD, dtype=dtype) for _ in "qv"]
    layer.query_key, layer.value = (_Constant(x) for x in inputs)
    hidden = torch.empty(1, point.length, 1, device=device)  # only its shape is looked at
    return attention(lambda qk, v: layer(hidden).hidden_states, inputs)


class _Constant(nn.Module):
    """In the place of a projection: gives ``x``, whatever comes in."""

    def __init__(self, x):
        super().__init__()
        self.given = [x]  # in a list, so that it is no parameter

    def forward(self, hidden):
        return self.given[0]


def dense(point, device, dtype=torch.float32):
    """Full causal attention, by PyTorch's own kernel."""
    inputs = [numbers(device, 1, HEADS, point.length, D_HEAD, dtype=dtype) for _ in "qkv"]
    return attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), inputs)


def matmul(point, device):
    """``point.flops`` as batched products (n, 64, 64) × (n, 64, 128); n the fastest, or given by the case "gemm"."""
    sizes = [point.length] if point.kind == "gemm" else [16, 64, 256] if device == "cpu" else [4096]
    make = {n: _products(n, device) for n in sizes}
    best = min(sizes, key=lambda n: min(_seconds(make[n], 1024 // n) for _ in range(3)) if len(sizes) > 1 else 0)
    times = max(1, round(point.flops / (2 * best * 64 * D_HEAD * 2 * CHUNK)))

    def run():
        for _ in range(times):
            out = make[best]()
        return [out]

    return run


def _products(n, device):
    a, b = (torch.randn(n, 64, D_HEAD, device=device), torch.randn(n, D_HEAD, 2 * CHUNK, device=device))
    out = torch.empty(n, 64, 2 * CHUNK, device=device)
    return lambda: torch.bmm(a, b, out=out)


def _seconds(function, times):
    start = time.perf_counter()
    for _ in range(times):
        function()
    return time.perf_counter() - start


# A training step of a whole model


def step(make, point, device):
    """The run of a step: forward, loss, backward, Adam. ``make(point)`` gives (model, its loss on (1, L) tokens)."""
    tokens = torch.randint(256, (1, point.length), generator=torch.Generator().manual_seed(3)).to(device)
    made = []

    def run():
        if not made:
            model, loss = make(point)
            model.to(device).train()
            made.extend((loss, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)))
        loss, optimizer = made
        optimizer.zero_grad(set_to_none=True)
        value = loss(tokens)
        value.backward()
        optimizer.step()
        return [value.detach()]

    return run


def step_config(point):
    """Our model: local and LSH layers alternating, as in transformers; windows as in the ports."""
    return ReformerConfig(
        **MODEL, n_layers=point.n_layers, pattern=("local", "lsh"), max_length=point.length,
        axial_shape=axial_shape(point.length), ff_chunk=FF_CHUNK, loss_chunk=FF_CHUNK,
        lsh=LSHOptions.preset("trax", n_hashes=point.n_hashes, chunk_length=CHUNK),
        local=LocalOptions(chunk_length=CHUNK, causal=True, chunks_after=0),
    )  # fmt: skip


def our_model(point):
    """Ours."""
    return model_of(step_config(point))(point)


def model_of(config):
    """``make(point)`` of `step` for this configuration of ours."""

    def make(point):
        model = ReformerLM(config)
        generator = torch.Generator().manual_seed(4)
        return model, lambda tokens: model.loss(tokens, generator=generator)

    return make


def lucidrains_model(point):
    """reformer-pytorch: LSH in every layer."""
    from reformer_pytorch import ReformerLM as Model

    model = Model(
        num_tokens=256, dim=256, depth=point.n_layers, max_seq_len=point.length, heads=4, dim_head=64, ff_mult=4,
        bucket_size=CHUNK, n_hashes=point.n_hashes, causal=True, ff_chunks=-(-point.length // FF_CHUNK),
        axial_position_emb=True, axial_position_shape=axial_shape(point.length),
    )  # fmt: skip

    def loss(tokens):
        return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    return model, loss


def huggingface_model(point):
    """transformers: local and LSH layers alternating, feed-forward and head in chunks, no dropout."""
    from transformers import ReformerConfig as Config
    from transformers import ReformerModelWithLMHead

    chunk = math.gcd(FF_CHUNK, point.length)  # it must divide the length
    model = ReformerModelWithLMHead(
        Config(
            vocab_size=256, hidden_size=256, num_attention_heads=4, attention_head_size=64, feed_forward_size=1024,
            attn_layers=(["local", "lsh"] * point.n_layers)[: point.n_layers], is_decoder=True, use_cache=False,
            num_hashes=point.n_hashes, num_buckets=None, lsh_attn_chunk_length=CHUNK, local_attn_chunk_length=CHUNK,
            max_position_embeddings=point.length, axial_pos_shape=axial_shape(point.length),
            axial_pos_embds_dim=(128, 128), hidden_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0, chunk_size_feed_forward=chunk, chunk_size_lm_head=chunk,
        )
    )  # fmt: skip
    return model, lambda tokens: model(input_ids=tokens, labels=tokens, use_cache=False).loss


def axial_shape(length):
    """Two factors whose product is the length, as transformers wants in training; as nearly square as it goes."""
    rows = max(n for n in range(1, math.isqrt(length) + 1) if length % n == 0)
    return rows, length // rows
