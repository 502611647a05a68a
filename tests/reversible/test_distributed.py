"""DistributedDataParallel on two processes (gloo): gradients are the average over the processes, in
every mode.
"""

import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reformer_ref.reversible import ReversibleStack
from reformer_ref.testing import expect_close
from torch import nn

MODES = [{}, {"find_unused_parameters": True}, {"static_graph": True}]
ROUNDS, RANKS, D = (3, 2, 6)  # several rounds: static_graph records the first and relies on it afterwards


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(D, D)
        shared = nn.Sequential(nn.Linear(D, D), nn.Tanh())
        self.stack = ReversibleStack([(nn.Sequential(nn.Linear(D, D), nn.Tanh()), shared), (nn.LayerNorm(D), shared)])
        self.double()

    def forward(self, x):
        h = self.inner(x)
        y1, y2 = self.stack(h, h)
        return (y1.sin() + y2).square().mean()


def batch(rank, step):
    return torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    gradients = []
    for mode in MODES:
        model = nn.parallel.DistributedDataParallel(Model(), **mode)
        for step in range(ROUNDS):
            model.zero_grad()
            model(batch(rank, step)).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.save(gradients, f"{folder}/gradients{rank}.pt")
    dist.barrier()  # nobody leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo")
def test_gradients_are_averaged(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=RANKS)
    model = Model()
    model.stack.reversible = False
    (sum(model(batch(rank, ROUNDS - 1)) for rank in range(RANKS)) / RANKS).backward()
    for rank in range(RANKS):
        for mode, gradients in zip(MODES, torch.load(tmp_path / f"gradients{rank}.pt"), strict=True):
            for (name, p), got in zip(model.named_parameters(), gradients, strict=True):
                expect_close(f"{name}, rank {rank}, {mode}", got, p.grad, 1e-12)
