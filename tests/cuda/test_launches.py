"""What happens on CUDA, without a GPU: how many kernels are launched, and that the host waits for none of them."""

import pytest
import torch
from reformer_ref.generation import Decoder
from reformer_ref.hashing import spec
from reformer_ref.hashing.api import default_n_buckets, unchecked_hash_vectors
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model import ReformerConfig, ReformerLM
from tests.cuda.pretend import Waits, pretended_cuda

LENGTH, HEADS, ROUNDS, D = 16384, 8, 4, 64


def on_cuda(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


def model_on_cuda(**changes):
    config = ReformerConfig(
        **{
            "n_layers": 6, "d_model": 512, "n_heads": HEADS, "max_length": LENGTH,
            "lsh": LSHOptions(n_hashes=ROUNDS), **changes,
        }
    )  # fmt: skip
    with torch.device("meta"):
        return ReformerLM(config)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_of_attention_launches_few_kernels(masked, dtype):
    with pretended_cuda() as launches:
        qk, v = (on_cuda(1, LENGTH, HEADS, D, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(2))
        mask = on_cuda(1, 1, LENGTH, dtype=torch.bool) if masked else None
        factors = default_n_buckets(LENGTH, 64)
        rotations = on_cuda(HEADS, ROUNDS, D, sum(factors) // 2)
        with launches.counted():
            buckets = unchecked_hash_vectors(qk, rotations, factors)
            assert launches.count <= 12, launches.by_name
        with launches.counted():
            out = lsh_attention(qk, v, buckets, LSHOptions(n_hashes=ROUNDS), mask)
            assert launches.by_name["reformer_ref.attention_forward.default"] == ROUNDS
            assert launches.count <= 12, launches.by_name
        with launches.counted():
            torch.autograd.grad(out, (qk, v), torch.empty_like(out))
            assert launches.count <= 20, launches.by_name


@pytest.mark.parametrize("length", [1, 63, 4096, 1 << 20])
def test_the_hash_launches_few_kernels_at_any_length(length):
    with pretended_cuda() as launches:
        factors = default_n_buckets(length, 64)
        rotations = on_cuda(HEADS, ROUNDS, D, sum(spec.factors_of(factors)) // 2)
        x = on_cuda(1, HEADS, length, D)
        with launches.counted():
            unchecked_hash_vectors(x, rotations, factors)
            assert 1 <= launches.count <= 3, launches.by_name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pattern": ("local", "lsh"), "ff_chunk": 8192, "loss_chunk": 8192},
        {"reversible": False, "positions": "sinusoidal", "dropout": 0.1},
        {"pattern": ("dense", "regular"), "n_layers": 2, "positions": "learned"},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_waits_in_a_training_step(changes, masked):
    with pretended_cuda() as launches:
        model = model_on_cuda(**changes).train()
        optimizer = torch.optim.Adam(model.parameters())
        tokens = on_cuda(1, LENGTH, dtype=torch.int64)
        mask = on_cuda(1, LENGTH, dtype=torch.bool) if masked else None
        for _ in range(2):  # the first step makes the state of the optimizer
            launches.by_name.clear()
            optimizer.zero_grad()
            model.loss(tokens, padding_mask=mask, generator=torch.Generator().manual_seed(0)).backward()
            optimizer.step()
        assert launches.count > 100  # it was followed
        if not changes:
            assert launches.count <= 600, launches.by_name


@torch.no_grad()
def test_nothing_waits_in_a_step_of_decoding():
    strict = LSHOptions.preset("strict", n_hashes=2)
    with pretended_cuda() as launches:
        model = model_on_cuda(n_layers=2, pattern=("local", "lsh"), max_length=1024, lsh=strict)
        decoder = Decoder(model)
        logits = decoder.prefill(on_cuda(2, 100, dtype=torch.int64))
        for _ in range(2):
            launches.by_name.clear()
            logits = decoder.step(logits.argmax(-1))
            assert launches.count > 20  # it was followed


@pytest.mark.parametrize(
    "read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: bool(x[0] > 0), torch.unique]
)
def test_waiting_would_be_noticed(read):
    with pretended_cuda(), pytest.raises((Waits, NotImplementedError)):
        read(on_cuda(3))
