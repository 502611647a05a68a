"""``fully_shard`` (FSDP2) and two processes (gloo): each holds a part of the weights, and its part of the gradient is
that of one process.
"""

import dataclasses
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reformer_lab.training.strategy import shard
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close

RANKS = 2
FIELDS = {"pattern": ("local", "lsh"), "n_layers": 4, "ff_chunk": 5, "loss_chunk": 7}
CAUSAL = small_config("strict", {"n_hashes": 2}, **FIELDS)
ENCODER = small_config("paper", {"n_hashes": 2, "chunks_after": 1}, causal=False, **FIELDS)
# name: (fields of the causal configuration, attributes of the backbone)
MODELS = {
    "untied": ({"tie_head": False}, {}),
    "tied": ({"tie_head": True}, {}),
    "layers run again as a whole": ({}, {"in_place": False}),
    "ordinary autograd": ({"reversible": False}, {}),
    "one stream": ({"streams": 1, "reversible": False}, {}),
    "dropout": ({"dropout": 0.2}, {}),
    "encoder-decoder": ({"n_layers": 3}, {}),
}


def make(name):
    fields, attributes = MODELS[name]
    config = dataclasses.replace(CAUSAL, **fields)
    model = ReformerEncoderDecoder(ENCODER, config) if name == "encoder-decoder" else ReformerLM(config)
    for key, value in attributes.items():
        setattr(model.backbone, key, value)
    return model.double()


def inputs(model, rank):
    generator = torch.Generator().manual_seed(rank)
    source, target = (torch.randint(0, 11, (2, n), generator=generator) for n in (13, 17))
    return (target,) if isinstance(model, ReformerLM) else (source, target)


def by_loss(model, rank):
    torch.manual_seed(rank)  # for dropout
    model.loss(*inputs(model, rank), generator=torch.Generator().manual_seed(rank)).backward()


def by_forward(model, rank):
    torch.manual_seed(rank)
    model(*inputs(model, rank)).square().mean().backward()


def by_two_forwards_and_one_backward(model, rank):
    torch.manual_seed(rank)
    first = model.loss(*inputs(model, rank))
    (first + model(*inputs(model, rank)).square().mean()).backward()


def by_two_backwards(model, rank):
    if dist.is_initialized():
        model.set_requires_gradient_sync(False)
    by_loss(model, rank)
    if dist.is_initialized():
        model.set_requires_gradient_sync(True)
    by_forward(model, rank)


STEPS = [by_loss, by_forward, by_two_forwards_and_one_backward, by_two_backwards]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    gradients = {}
    for name in MODELS:
        model = shard(make(name))
        for step in STEPS:
            model.zero_grad()
            step(model, rank)
            assert all(isinstance(p.grad, dist.tensor.DTensor) for p in model.parameters())
            gradients[name, step.__name__] = [p.grad.full_tensor() for p in model.parameters()]
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    dist.barrier()  # nobody leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo")
def test_gradients_are_those_of_one_process(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=RANKS)
    gradients = torch.load(tmp_path / "gradients.pt")
    for name in MODELS:
        for step in STEPS:
            model = make(name)
            for rank in range(RANKS):
                step(model, rank)
            for (path, p), got in zip(model.named_parameters(), gradients[name, step.__name__], strict=True):
                expect_close(f"{path}, {name}, {step.__name__}", got, p.grad / RANKS, 1e-12)
