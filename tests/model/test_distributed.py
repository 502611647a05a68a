"""DistributedDataParallel on two processes (gloo): gradients are the average over the processes, in
every mode.
"""

import dataclasses
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close
from torch import nn

MODES = [{}, {"find_unused_parameters": True}, {"static_graph": True}]
ROUNDS, RANKS = 2, 2  # static_graph records the first round and relies on it afterwards
FIELDS = {"pattern": ("local", "lsh"), "n_layers": 2, "ff_chunk": 5, "loss_chunk": 7, "tie_head": True}
DECODER = small_config("strict", {"n_hashes": 2}, **FIELDS)
ENCODER = small_config("paper", {"n_hashes": 2, "chunks_after": 1}, causal=False, **FIELDS)


class Loss(nn.Module):
    """DistributedDataParallel sees ``forward`` only. The language model ties its head, so a weight
    is used twice.
    """

    def __init__(self, kind, reversible=True):
        super().__init__()
        encoder, decoder = (dataclasses.replace(c, reversible=reversible) for c in (ENCODER, DECODER))
        self.kind = kind
        self.model = ReformerEncoderDecoder(encoder, decoder) if kind == "encoder-decoder" else ReformerLM(decoder)
        self.double()

    def forward(self, rank, step):
        generator = torch.Generator().manual_seed(10 * step + rank)
        source, target = (torch.randint(0, 11, (2, n), generator=generator) for n in (13, 17))
        inputs = (target,) if isinstance(self.model, ReformerLM) else (source, target)
        if self.kind == "lm, forward":
            return self.model(*inputs, generator=generator).square().mean()
        return self.model.loss(*inputs, generator=generator)


def worker(rank, folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    gradients = []
    for mode in MODES:
        model = nn.parallel.DistributedDataParallel(Loss(kind), **mode)
        for step in range(ROUNDS):
            model.zero_grad()
            model(rank, step).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.save(gradients, f"{folder}/gradients{rank}.pt")
    dist.barrier()  # nobody leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo")
@pytest.mark.parametrize("kind", ["lm", "lm, forward", "encoder-decoder"])
def test_gradients_are_averaged(kind, tmp_path):
    mp.spawn(worker, (str(tmp_path), kind), nprocs=RANKS)
    model = Loss(kind, reversible=False)
    (sum(model(rank, ROUNDS - 1) for rank in range(RANKS)) / RANKS).backward()
    for rank in range(RANKS):
        for mode, gradients in zip(MODES, torch.load(tmp_path / f"gradients{rank}.pt"), strict=True):
            for (name, p), got in zip(model.named_parameters(), gradients, strict=True):
                expect_close(f"{name}, rank {rank}, {mode}", got, p.grad, 1e-12)
