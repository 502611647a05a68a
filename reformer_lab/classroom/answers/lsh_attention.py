"""Assignment A3: the answers under every variant, built on the specs of the rooms where these know them."""

import numpy as np
import torch
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort
from reformer_ref.chunking.spec import sort_by_bucket
from reformer_ref.lsh_attention.checks import check_lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions

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
    """fn(order, buckets, chunk_length) -> who sees whom, bool (n_hashes, L, L)."""

    def fn(order, buckets, chunk_length):
        n_hashes, length = order.shape
        free = -length % chunk_length if variant.pad == "start" else 0
        seen = np.zeros((n_hashes, length, length), dtype=bool)
        for h in range(n_hashes):
            chunk = {int(i): (slot + free) // chunk_length for slot, i in enumerate(order[h])}
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
        one = np.eye(len(v), dtype=int)
        return attend(logits, one.astype(float), v, self_as_last_resort(counts + one))[0]

    return fn


def merge_rounds(variant):
    """fn(o (…, n_hashes, L, d_v), z (…, n_hashes, L), v (…, L, d_v)) -> (…, L, d_v), tensors."""

    def fn(o, z, v):
        alone = z.amax(-2) == -torch.inf  # (…, L)
        share = torch.softmax(z.masked_fill(alone[..., None, :], 0.0), dim=-2)
        return torch.where(alone[..., None], v, (share[..., None] * o).sum(-3))

    return fn


def attend_rounds(variant):
    """fn(q, k, v, order, buckets, chunk_length) -> (o (…, n_hashes, L, d_v), z (…, n_hashes, L)), tensors."""

    def fn(q, k, v, order, buckets, chunk_length):
        length, m = q.shape[-2], chunk_length
        slot = order.argsort(-1) + (-length % m if variant.pad == "start" else 0)  # places, free ones counted
        who = torch.full((*order.shape[:-1], -(-length // m) * m), -1)
        who = who.scatter(-1, slot, torch.arange(length).expand(order.shape)).unflatten(-1, (-1, m))
        none = torch.full_like(who[..., :1, :], -1).expand(*who.shape[:-2], variant.n_look, m)
        wide = torch.cat([none, who, none], dim=-2)  # (…, n_hashes, n_look + n_chunks + n_look, m)
        first = 0 if variant.look == "back" else variant.n_look
        keys = wide.unfold(-2, variant.n_look + 1, 1)[..., first : first + who.shape[-2], :, :].flatten(-2)

        def pick(x, at):  # x (…, L, d) at (…, n_hashes, n_chunks, places)
            return x.take_along_dim(at.clamp(min=0).flatten(-3)[..., None], -2).unflatten(-2, at.shape[-3:])

        chunk_i, chunk_j = (pick((slot // m).mT, at) for at in (who, keys))  # (…, n_hashes, n_chunks, places, n_hashes)
        bucket_i, bucket_j = (pick(buckets.mT, at) for at in (who, keys))
        away = chunk_i.unsqueeze(-2) - chunk_j.unsqueeze(-3)
        away = away if variant.look == "back" else -away
        near = (away >= 0) & (away <= variant.n_look) & (bucket_i.unsqueeze(-2) == bucket_j.unsqueeze(-3))
        i, j = who[..., None], keys[..., None, :]
        seen = (j > i if sees_later(variant) else j < i) & (i >= 0) & (j >= 0)
        here = torch.eye(order.shape[-2], dtype=torch.bool)[:, None, None, None]
        seen &= (near & here).any(-1)  # (…, n_hashes, n_chunks, m, window)
        logits = pick(q, who) @ pick(k, keys).mT
        if variant.count == "once":
            logits = logits - near.sum(-1).clamp(min=1).to(q.dtype).log()
        alone = ~seen.any(-1, keepdim=True)
        z = logits.masked_fill(~seen & ~alone, -torch.inf).logsumexp(-1, keepdim=True)
        o = torch.where(seen, (logits - z).masked_fill(~seen, 0.0).exp(), 0.0) @ pick(v, keys)
        o, z = (x.flatten(-3, -2).take_along_dim(slot[..., None], -2) for x in (o, z.masked_fill(alone, -torch.inf)))
        return o, z.squeeze(-1)

    return fn


def _check_port(fn):
    """The function as an LSH attention: keys of length 1, rounds merged, real tokens alone."""

    def attention(qk, v, buckets, options, padding_mask):
        out = np.zeros(v.shape)
        real = np.broadcast_to(True if padding_mask is None else padding_mask, v.shape[:-1])
        for at in np.ndindex(v.shape[:-2]):
            if not real[at].any():
                continue
            q, values, mine = qk[at][real[at]], v[at][real[at]], buckets[at][:, real[at]]
            arrays = (q, normalize_keys(q, norm_eps=0.0), values, sort_by_bucket(mine), mine)
            parts = fn(*map(torch.tensor, arrays), options.chunk_length)
            out[at][real[at]] = merge_rounds(None)(*parts, torch.tensor(values)).numpy()
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
