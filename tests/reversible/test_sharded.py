"""``fully_shard`` (FSDP2): what may be sharded, what is refused, what is stored. One process is enough for that."""

import sys

import pytest
import torch
import torch.distributed as dist
from reformer_lab.training.strategy import shard
from reformer_ref import (
    Decoder,
    ReformerLM,
    ReversibleBlock,
    ReversibleStack,
    count_peak,
    reversible_stack_inverse,
    to_huggingface,
)
from reformer_ref.model.checks import small_config
from reformer_ref.testing import expect_close
from tests.model.test_huggingface import THEIRS
from torch import nn

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs torch.distributed with gloo"
)
D = 6
TOKENS = torch.arange(20)[None] % 11


@pytest.fixture(autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fully_shard(module, **how):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, **how)


class Model(nn.Module):
    """Blocks of one, two and three layers, one of them with dropout, and one layer used twice in a block."""

    def __init__(self, reversible=True):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Sequential(nn.Linear(D, D), nn.Dropout(0.3), nn.Tanh()) for _ in range(6)]
            twice = nn.Linear(D, D)
        blocks = [ReversibleBlock(*layers[:3]), (layers[3], twice, twice), ReversibleBlock(layers[4])]
        self.stack = ReversibleStack([*blocks, ReversibleBlock(layers[5], nn.LayerNorm(D))], reversible)
        self.double()

    def forward(self, x):
        y1, y2 = self.stack(x, 2 * x)
        return (y1.sin() + y2).square().mean()

    def loss(self, x):
        return self(x)


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("sharded_blocks", [(0, 2, 3), (2,), ()])
def test_any_stack(reversible, sharded_blocks):
    models = Model(reversible=False), Model(reversible)
    for index in sharded_blocks:
        fully_shard(models[1].stack.blocks[index])
    fully_shard(models[1])
    gradients = []
    for model in models:
        x = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        torch.manual_seed(2)
        model(x).backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for index, (want, got) in enumerate(zip(*gradients, strict=True)):
        got = got.full_tensor() if index else got
        expect_close(f"gradient {index}", got, want, 1e-12)


def test_a_block_alone():
    x = torch.ones(2, D, dtype=torch.float64)
    want, block = Model().stack.blocks[3], fully_shard(Model().stack.blocks[3])
    for module in (want, block):
        torch.manual_seed(2)
        sum(y.square().sum() for y in module(x, x)).backward()
    for p, q in zip(block.parameters(), want.parameters(), strict=True):
        expect_close("gradient", p.grad.full_tensor(), q.grad, 1e-12)


def lm(**changes):
    fields = {"pattern": ("local", "lsh"), "n_layers": 2, **changes}
    return ReformerLM(small_config("strict", {"n_hashes": 1}, **fields))


@pytest.mark.parametrize(
    ("path", "weight"),
    [
        ("backbone.stack.blocks.0.layers.0", r"backbone\.stack\.blocks\.0\.layers\.0\.norm\.weight"),
        ("backbone.stack.blocks.1.layers.1.inner", r"backbone\.stack\.blocks\.1\.layers\.1\.inner\.w1"),
        ("backbone.stack", r"backbone\.stack\.blocks\.0\.layers\.0\.norm\.weight"),
        ("backbone.embedding", r"backbone\.embedding\.weight"),
        ("head", r"head\.weight"),
    ],
)
def test_parts_that_are_never_called_are_refused(path, weight):
    for whole in (fully_shard, shard):
        model = lm()
        fully_shard(model.get_submodule(path))
        if whole is shard and path == "backbone.stack":  # blocks after what holds them: PyTorch refuses this itself
            continue
        whole(model)
        for compute in (model, model.loss):
            with pytest.raises(ValueError, match=f"model must not read .* sharded, got {weight}: apply fully_shard to"):
                compute(TOKENS)


def test_a_loss_that_is_not_registered_is_refused():
    model = lm()
    for block in model.backbone.stack.blocks:
        fully_shard(block)
    fully_shard(model)
    with pytest.raises(ValueError, match=r"got backbone\.embedding\.weight: .* register_fsdp_forward_method"):
        model.loss(TOKENS)
    model(TOKENS)


def test_layers_of_a_public_stack_are_refused():
    stack = ReversibleStack([ReversibleBlock(fully_shard(nn.Linear(D, D)), nn.Tanh())])
    with pytest.raises(ValueError, match=r"blocks must not read .* sharded, got 0\.weight: apply"):
        stack(torch.ones(2, D), torch.ones(2, D))


def test_residual_streams_are_not_cast():
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = lm()
    for block in model.backbone.stack.blocks:
        fully_shard(block, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    fully_shard(model)
    with pytest.raises(ValueError, match=r"mp_policy of fully_shard must not cast .*use torch\.autocast"):
        model(TOKENS)


def test_what_needs_whole_weights_says_so():
    model = shard(lm())
    with pytest.raises(ValueError, match=r"model must not read .* sharded, .*load the weights"):
        Decoder(model)
    with pytest.raises(ValueError, match=r"model must not read .* sharded, .*load the weights"):
        to_huggingface(shard(ReformerLM(THEIRS)))
    x = torch.ones(2, D, dtype=torch.float64)
    block = fully_shard(Model().stack.blocks[3])
    with pytest.raises(ValueError, match=r"blocks must not read .* sharded, .*call the inverse"):
        reversible_stack_inverse(x, x, [block])


@pytest.mark.parametrize("model", [None, nn.Linear(2, 2)])
def test_shard_refuses_what_has_no_loss(model):
    with pytest.raises(TypeError, match="model must be a module with a method `loss`"):
        shard(model)


@pytest.mark.parametrize("step", [lambda m, t: m.loss(t), lambda m, t: m(t).square().mean()], ids=["loss", "forward"])
def test_activations_are_not_stored(step):
    """The peak does not depend on depth, although every block is a node of its own."""
    peaks = {}
    for depth in (2, 6):
        fields = {"n_layers": depth, "max_length": 512, "positions": "none", "axial_shape": None, "axial_dims": None}
        model = shard(lm(pattern=("local",), ff_chunk=64, loss_chunk=64, **fields))
        tokens = torch.arange(512)[None] % 11
        step(model, tokens).backward()
        peaks[depth] = count_peak(lambda: step(model, tokens).backward()).above_start_bytes  # noqa: B023
    assert peaks[6] <= 1.05 * peaks[2]
