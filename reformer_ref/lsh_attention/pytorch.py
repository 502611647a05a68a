"""LSH attention, the version to read: all chunks of all rounds at once, by ordinary autograd.

Sizes in the comments: L tokens, d = d_head, R rounds, n chunks of m tokens in a round, w·m keys in
the window of a chunk (w = before + 1 + after). Memory grows with R·L·w·m; ``streaming`` computes
the same function block by block.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reformer_ref.attention.pytorch import normalize_keys
from reformer_ref.chunking.pytorch import (
    gather_rows,
    look_adjacent,
    sort_by_bucket,
    split_chunks,
    undo_sort,
)
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.record import AttentionRecord


def lsh_attention(
    qk: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    buckets: Int[Tensor, "*batch n_hashes L"],
    options: LSHOptions,
    padding_mask: Bool[Tensor, "..."] | None = None,
    *,
    return_record: bool = False,
) -> Float[Tensor, "*batch L d_v"] | tuple[Float[Tensor, "*batch L d_v"], AttentionRecord]:
    """Attend with shared queries and keys within windows of the sorted sequence (paper section 2).

    Arguments as in ``lsh_attention.api``, not checked. Scores, softmax and log-sum-exp are float32
    at least; the output has the dtype of v.
    """
    length, d = qk.shape[-2:]
    chunk_length = min(options.chunk_length, length)
    real = torch.ones(qk.shape[:-1], dtype=torch.bool, device=qk.device)  # (…, L)
    if padding_mask is not None:
        real = padding_mask.expand(real.shape)

    # 1. Sort by (bucket, position). Padding goes last and has a bucket of its own.
    order = sort_by_bucket(buckets, real)  # (…, R, L)
    slot = undo_sort(order)  # (…, R, L)
    bucket = buckets.long().masked_fill(~real[..., None, :], -1)  # (…, R, L)

    # 2. Cut every round into chunks of m slots. Slots beyond the end hold −1.
    queries = split_chunks(order, chunk_length)  # (…, R, n, m) positions

    # 3. Each chunk looks at its neighbours. With ``wrap`` the chunks of all rounds form one ring.
    n_hashes = queries.shape[-3]
    rounds = torch.arange(n_hashes, device=qk.device)[:, None, None]  # (R, 1, 1)
    chunks = torch.stack([queries, rounds.expand_as(queries)], dim=-1)  # (…, R, n, m, 2)
    if options.wrap:
        chunks = chunks.flatten(-4, -3)  # (…, R·n, m, 2)
    before, after = options.chunks_before, options.chunks_after
    windows = look_adjacent(chunks, before, after, options.wrap, fill=-1)
    keys, key_rounds = windows.reshape(*queries.shape[:-1], -1, 2).unbind(-1)  # (…, R, n, w·m)

    # 4. Scores, in float32 at least: q·k̂ can be as large as ‖q‖. The query is q, the key q / ‖q‖.
    q = gather_rows(qk, queries)  # (…, R, n, m, d)
    k = gather_rows(normalize_keys(qk, options.norm_eps), keys)  # (…, R, n, w·m, d)
    wide = torch.promote_types(qk.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).mT).to(wide)  # (…, R, n, m, w·m); autocast narrows products
    scores = options.scale_for(d) * scores

    # 5. Which keys each query can attend to. A query never sees itself here, but see step 10.
    i = queries[..., :, None]  # (…, R, n, m, 1)
    j = keys[..., None, :]  # (…, R, n, 1, w·m)
    key_is_real = (keys >= 0) & gather_rows(real[..., None], keys).squeeze(-1)
    visible = key_is_real[..., None, :] & (j != i)  # (…, R, n, m, w·m)
    if options.causal:
        visible = visible & (j <= i)
    if options.within_bucket:
        visible = visible & (key_rounds == rounds)[..., None, :]
        visible = visible & (at(bucket, queries)[..., :, None] == at(bucket, keys)[..., None, :])
    if options.window == "rank":  # the m most recent earlier members of the bucket
        distance = at(slot, queries)[..., :, None] - at(slot, keys)[..., None, :]
        visible = visible & (distance > 0) & (distance <= chunk_length)

    # 6. Count each key once: a pair that N_ij windows show gets 1/N_ij of its weight in each.
    if options.count_once and (n_hashes > 1 or options.wrap):
        n_windows = count_windows(queries, keys, bucket, slot, chunk_length, options)
        scores = scores - n_windows.clamp(min=1).to(scores.dtype).log()

    # 7. Softmax within each window. A query without a visible key gets weights 0 and lse −∞; its
    #    scores stay finite, so that no NaN arises.
    sees_a_key = visible.any(-1, keepdim=True)  # (…, R, n, m, 1)
    scores = scores.masked_fill(~visible & sees_a_key, -torch.inf)
    lse = scores.logsumexp(-1).masked_fill(~sees_a_key.squeeze(-1), -torch.inf)  # (…, R, n, m)
    weights = scores.softmax(-1).masked_fill(~visible, 0.0)  # (…, R, n, m, w·m)
    out = weights.to(v.dtype) @ gather_rows(v, keys)  # (…, R, n, m, d_v)

    # 8. Undo the sort.
    out = out.flatten(-3, -2).take_along_dim(slot[..., None], -2)  # (…, R, L, d_v)
    lse = lse.flatten(-2).take_along_dim(slot, -1)  # (…, R, L)

    # 9. Merge the rounds into one softmax: each weighs as much as its sum of exponentials.
    only_self = (lse == -torch.inf).all(-2)  # (…, L)
    round_weights = lse.masked_fill(only_self[..., None, :], 0.0).softmax(-2)  # (…, R, L)
    out = (round_weights[..., None] * out).sum(-3).to(v.dtype)  # (…, L, d_v)

    # 10. A token attends to itself only if nothing else is visible to it in any round.
    only_self = only_self & real
    out = torch.where(only_self[..., None], v, out)
    if not return_record:
        return out
    weights = weights * at(round_weights, queries)[..., None]
    return out, AttentionRecord._make(buckets, order, queries, keys, weights, only_self, before)


def at(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of a table (…, R, L) at positions (…, R, n, any): (…, R, n, any)."""
    index = positions.clamp(min=0).flatten(-2)  # (…, R, n·any)
    return table.take_along_dim(index, -1).view_as(positions)


def count_windows(
    queries: Tensor,
    keys: Tensor,
    bucket: Tensor,
    slot: Tensor,
    chunk_length: int,
    options: LSHOptions,
) -> Tensor:
    """N_ij: in how many places, over all rounds, query i looks at key j: (…, R, n, m, w·m).

    A round shows the pair if the distance from key to query, in chunks (in slots for "rank"), lies
    in [nearest, farthest]. On a ring distances are taken modulo its length, and a window that goes
    around the ring shows a key several times.
    """
    n_hashes, n_chunks = queries.shape[-3:-1]
    nearest, farthest = -options.chunks_after, options.chunks_before
    place = slot // chunk_length  # (…, R, L)
    if options.window == "rank":
        nearest, farthest, place = 1, chunk_length, slot
    if options.wrap:
        place = place + n_chunks * torch.arange(n_hashes, device=slot.device)[:, None]
    ring = n_hashes * n_chunks
    # One tensor for each round s:
    query_place = gather_rows(place.mT, queries)[..., :, None, :].unbind(-1)  # (…, R, n, m, 1)
    key_place = gather_rows(place.mT, keys)[..., None, :, :].unbind(-1)  # (…, R, n, 1, w·m)
    if options.within_bucket:
        query_bucket = gather_rows(bucket.mT, queries)[..., :, None, :].unbind(-1)
        key_bucket = gather_rows(bucket.mT, keys)[..., None, :, :].unbind(-1)
    n_windows = torch.zeros((), device=slot.device)
    for s in range(n_hashes):
        across_rounds = options.wrap and not options.within_bucket
        for t in range(n_hashes) if across_rounds else (s,):
            distance = query_place[s] - key_place[t]  # (…, R, n, m, w·m)
            if options.wrap:  # how many numbers of [nearest, farthest] equal it modulo the ring
                meets = (farthest - distance) // ring - (nearest - 1 - distance) // ring
            else:
                meets = (distance >= nearest) & (distance <= farthest)
            if options.within_bucket:
                meets = meets * (query_bucket[s] == key_bucket[s])
            n_windows = n_windows + meets
    return n_windows
