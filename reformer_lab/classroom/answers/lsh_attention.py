"""A3: the answers under every variant, built on the specs of the reference where these have the convention."""

import numpy as np
import torch
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort
from reformer_ref.chunking.spec import sort_by_bucket
from reformer_ref.lsh_attention.checks import check_lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from torch.nn.functional import pad

from reformer_lab.classroom.answers import Answer
from reformer_lab.classroom.answers import lsh_attention_cases as cases
from reformer_lab.classroom.exercises.chunking import sees_later


def shared_logits(variant):
    """fn(q (L, d)) -> the logits of all pairs, (L, L)."""

    def fn(q):
        if variant.key_norm == "l2":
            return q @ normalize_keys(q, norm_eps=0.0).T
        size = np.abs(q).sum(-1) if variant.key_norm == "l1" else np.sqrt(np.mean(q**2, axis=-1))
        return q @ q.T / np.where(size > 0, size, 1.0)

    return fn


def seen_in_rounds(variant):
    """fn(order, buckets, chunk_length) -> which keys each query sees, bool (n_hashes, L, L)."""

    def fn(order, buckets, chunk_length):
        n_hashes, length = order.shape
        n_before = -length % chunk_length if variant.pad == "start" else 0  # free places before the first token
        seen = np.zeros((n_hashes, length, length), dtype=bool)
        for h in range(n_hashes):
            chunk = {int(i): (slot + n_before) // chunk_length for slot, i in enumerate(order[h])}
            for i, j in np.ndindex(length, length):
                away = chunk[i] - chunk[j] if variant.look == "back" else chunk[j] - chunk[i]
                near = 0 <= away <= variant.n_look and buckets[h, i] == buckets[h, j]
                seen[h, i, j] = near and (j > i if sees_later(variant) else j < i)
        return seen

    return fn


def attend_all(variant):
    """fn(logits (L, L), seen (n_hashes, L, L), v (L, d_v)) -> one softmax over all rounds, (L, d_v)."""

    def fn(logits, seen, v):
        counts = seen.any(0).astype(int) if variant.count == "once" else seen.sum(0)
        itself = np.eye(len(v), dtype=int)
        return attend(logits, itself.astype(float), v, self_as_last_resort(counts + itself))[0]

    return fn


def merge_rounds(variant):
    """fn(o (…, n_hashes, L, d_v), z (…, n_hashes, L), v (…, L, d_v)) -> (…, L, d_v), tensors."""

    def fn(o, z, v):
        only_self = z.amax(-2) == -torch.inf  # (…, L)
        weights = torch.softmax(z.masked_fill(only_self[..., None, :], 0.0), dim=-2)  # (…, n_hashes, L)
        return torch.where(only_self[..., None], v, (weights[..., None] * o).sum(-3))

    return fn


def attend_rounds(variant):
    """fn(q, k, v, order, buckets, chunk_length) -> (o (…, n_hashes, L, d_v), z (…, n_hashes, L)), tensors."""

    def fn(q, k, v, order, buckets, chunk_length):
        # 1. Chunks of the sorted order, and the window of each chunk; padding holds -1
        n_padding, n_look = -order.shape[-1] % chunk_length, variant.n_look
        n_before = n_padding if variant.pad == "start" else 0
        queries = pad(order, (n_before, n_padding - n_before), value=-1).unflatten(-1, (-1, chunk_length))
        neighbours = (n_look, 0) if variant.look == "back" else (0, n_look)
        keys = pad(queries, (0, 0, *neighbours), value=-1).unfold(-2, n_look + 1, 1).flatten(-2)
        # queries (…, n_hashes, n_chunks, m), keys (…, n_hashes, n_chunks, window)

        # 2. For each pair of a window: in which rounds do they meet?
        slot = order.argsort(-1) + n_before  # (…, n_hashes, L)
        chunks = (slot // chunk_length).mT  # (…, L, n_hashes)
        away = gather_rows(chunks, queries).unsqueeze(-2) - gather_rows(chunks, keys).unsqueeze(-3)
        away = away if variant.look == "back" else -away
        met = gather_rows(buckets.mT, queries).unsqueeze(-2) == gather_rows(buckets.mT, keys).unsqueeze(-3)
        met &= (away >= 0) & (away <= n_look)  # (…, n_hashes, n_chunks, m, window, n_hashes)

        # 3. What this round shows: they meet in it, and the key is on the right side in time
        i, j = queries[..., None], keys[..., None, :]
        this_round = torch.eye(order.shape[-2], dtype=torch.bool)[:, None, None, None]
        seen = (met & this_round).any(-1) & (i >= 0) & (j >= 0)
        seen &= j > i if sees_later(variant) else j < i  # (…, n_hashes, n_chunks, m, window)

        # 4. One softmax per round; a query that sees nothing has the output 0 and z = -inf
        logits = gather_rows(q, queries) @ gather_rows(k, keys).mT
        if variant.count == "once":
            logits = logits - met.sum(-1).clamp(min=1).to(q.dtype).log()
        empty = ~seen.any(-1, keepdim=True)
        z = logits.masked_fill(~seen & ~empty, -torch.inf).logsumexp(-1, keepdim=True)
        weights = torch.where(seen, (logits - z).masked_fill(~seen, 0.0).exp(), 0.0)
        o = weights @ gather_rows(v, keys)

        # 5. Back to the order of positions
        results = (o, z.masked_fill(empty, -torch.inf))
        o, z = (x.flatten(-3, -2).take_along_dim(slot[..., None], -2) for x in results)
        return o, z.squeeze(-1)

    return fn


def gather_rows(x, places):
    """Rows of x (…, L, d) at places (…, n_hashes, n_chunks, n); padding, -1, gets the first row."""
    return x.take_along_dim(places.clamp(min=0).flatten(-3)[..., None], -2).unflatten(-2, places.shape[-3:])


def _check_port(fn):
    """The function as an LSH attention: keys of length 1, rounds merged, real tokens alone."""

    def attention(qk, v, buckets, options, padding_mask):
        out = np.zeros(v.shape)
        real = np.broadcast_to(True if padding_mask is None else padding_mask, v.shape[:-1])
        for at in np.ndindex(v.shape[:-2]):
            if not real[at].any():
                continue
            q, values, real_buckets = qk[at][real[at]], v[at][real[at]], buckets[at][:, real[at]]
            arrays = (q, normalize_keys(q, norm_eps=0.0), values, sort_by_bucket(real_buckets), real_buckets)
            o, z = fn(*map(torch.tensor, arrays), options.chunk_length)
            out[at][real[at]] = merge_rounds(None)(o, z, torch.tensor(values)).numpy()
        return out

    check_lsh_attention(attention, LSHOptions(n_hashes=2, chunk_length=4, norm_eps=0.0))


ANSWERS = {
    "A3.logits": Answer(shared_logits, cases.logits),
    "A3.seen": Answer(seen_in_rounds, cases.seen),
    "A3.attend": Answer(attend_all, cases.attend),
    "A3.merge": Answer(merge_rounds, cases.merge),
    "A3.port": Answer(attend_rounds, cases.port, _check_port),
    "A3.gradient": Answer(attend_rounds, cases.gradient),
    "A3.scale": Answer(attend_rounds, cases.scale),
}
