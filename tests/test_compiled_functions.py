"""Every public function of attention and hashing is one graph for torch.compile, arguments checked as ever."""

import pytest
import torch
from reformer_ref import (
    LocalOptions,
    LSHOptions,
    hash_vectors,
    local_attention,
    look_adjacent,
    lsh_attention,
    regular_attention,
    shared_qk_attention,
    sort_by_bucket,
    split_chunks,
)
from reformer_ref.testing import relative_error

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 23, 8, generator=GENERATOR, dtype=torch.float64)
ROTATIONS = torch.randn(2, 8, 4, generator=GENERATOR, dtype=torch.float64)
BUCKETS = torch.randint(0, 4, (2, 2, 23), generator=GENERATOR)
MASK = torch.arange(23) < 20
LSH = LSHOptions(n_hashes=2, chunk_length=4)
FUNCTIONS = {
    "shared_qk_attention": lambda x: shared_qk_attention(x, x, True, MASK),
    "regular_attention, in blocks": lambda x: regular_attention(x, x, x, True, MASK, block_size=5),
    "lsh_attention, plain": lambda x: lsh_attention(x, x, BUCKETS, LSH, MASK, backend="plain"),
    "lsh_attention, streaming": lambda x: lsh_attention(x, x, BUCKETS, LSH, MASK, backend="streaming"),
    "local_attention": lambda x: local_attention(x, x, x, LocalOptions(chunk_length=4), MASK),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_one_graph(name):
    torch.compiler.reset()
    want, got = [], []
    for function, results in (
        (FUNCTIONS[name], want),
        (torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager"), got),
    ):
        x = X.clone().requires_grad_()
        out = function(x)
        out.sum().backward()
        results += [out.detach(), x.grad]
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.slow
def test_hash_and_sort_in_one_graph():
    torch.compiler.reset()

    def order(x):
        buckets = hash_vectors(x, ROTATIONS, 8)
        positions = sort_by_bucket(buckets)
        return buckets, positions, look_adjacent(split_chunks(positions, 4), 1, 0)

    for a, b in zip(torch.compile(order, fullgraph=True, backend="aot_eager")(X), order(X), strict=True):
        assert torch.equal(a, b)
