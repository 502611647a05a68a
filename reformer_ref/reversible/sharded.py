"""Reversible stacks whose blocks are sharded over processes, by ``fully_shard`` of PyTorch (FSDP).

FSDP gathers the weights of a block before its forward pass and again before its backward pass, after
which it sums the gradients over the processes and keeps the part of each. It sees a block only where
the block is called and is a node of the autograd graph. So a sharded stack is not one node but a
chain of them, a node for each block. The last block stores its outputs, as the whole stack does
otherwise; each of the others gets its outputs in backward from the block after it, which has rebuilt
them as its inputs.
"""

import sys
from functools import partial
from itertools import pairwise

from reformer_ref.reversible.in_place import Link

WHOLE_BLOCKS = (
    "apply fully_shard to whole reversible blocks and to the model, and "
    "register_fsdp_forward_method to its loss, as reformer_lab.training.strategy.shard does"
)
LOAD_IN_ONE_PROCESS = (
    "load the weights (get_model_state_dict, full_state_dict=True) into a model of one process"
)


def any_sharded(modules):
    """Whether ``fully_shard`` was applied to one of the modules."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # to import it would take long
    if fsdp is not None:
        for module in modules:
            if isinstance(module, fsdp.FSDPModule):
                return True
    return False


def call_blocks(compute, x1, x2, blocks, *context):
    """``compute(x1, x2, layers, *context)`` of the layers of all blocks.

    Where a block is sharded, each is called, one after the other, and computes its layers alone,
    given a further argument ``link``; the result is that of the last one. blocks: `ReversibleBlock`.
    """
    if not any_sharded(blocks):
        return compute(x1, x2, [layer for block in blocks for layer in block.layers], *context)
    # Between two blocks is a list in which backward passes the streams on.
    lists = [None, *([] for _ in blocks[1:]), None]
    start, out = 0, (x1, x2)
    for block, (before, after) in zip(blocks, pairwise(lists), strict=True):
        link = Link(start, before, after)
        out = block(*out, *context, compute=partial(_compute_uncast, compute, x1.dtype, link))
        start += len(block.layers)
    return out


def _compute_uncast(compute, dtype, link, x1, x2, layers, *context):
    if x1.dtype != dtype:
        reason = (
            f"mp_policy of fully_shard must not cast the residual streams ({dtype} to {x1.dtype})"
        )
        raise ValueError(f"{reason}: leave it out, and use torch.autocast")
    return compute(x1, x2, layers, *context, link=link)


def require_gathered(name, module, blocks=(), remedy=WHOLE_BLOCKS):
    """ValueError if ``module`` would read weights of which each process holds a part only.

    blocks: those that will be called, so that FSDP gathers their weights in time.
    """
    dtensor = sys.modules.get("torch.distributed.tensor")
    if dtensor is None:
        return
    sharded = [(path, p) for path, p in module.named_parameters() if isinstance(p, dtensor.DTensor)]
    if not sharded:
        return
    gathered = set()
    for block in blocks:
        if any_sharded([block]):
            inner = [child for layer in block.layers for child in layer.modules()]
            inner = [child.parameters() for child in inner if any_sharded([child])]
            gathered |= set(block.parameters()).difference(*inner)
    for path, p in sharded:
        if p not in gathered:
            raise ValueError(f"{name} must not read weights that are sharded, got {path}: {remedy}")
