"""LSH attention, the version to read: all chunks of all rounds at once, by ordinary autograd.

Sizes in the comments: L tokens (``length``), d = d_head, R rounds (``n_hashes``), n chunks of m
tokens (``chunk_length``) in a round, w·m keys in the window of a chunk (w = before + 1 + after).

A *position* is the place of a token in the sequence, a *slot* its place in the sorted order of a
round. Position −1 marks free places in chunks and windows. Looking up −1 gives the entry of position
0: such keys are hidden in step 5, and the results of such queries are dropped in step 8.

Memory grows with R·L·w·m; ``streaming`` computes the same function block by block.
"""

from itertools import product

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
from reformer_ref.lsh_attention.record import AttentionRecord, record_of_call


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

    Arguments as in ``lsh_attention.api``, not checked; padding_mask is True for real tokens.
    Scores, softmax and log-sum-exp are float32 at least; the output has the dtype of v.
    """
    length, d = qk.shape[-2:]
    chunk_length = min(options.chunk_length, length)
    real = torch.ones(qk.shape[:-1], dtype=torch.bool, device=qk.device)  # (…, L)
    if padding_mask is not None:
        real = padding_mask.expand(real.shape)

    # 1. Sort by (bucket, position). Padding goes last, and its bucket is −1.
    order = sort_by_bucket(buckets, real)  # (…, R, L): the position in each slot
    slot = undo_sort(order)  # (…, R, L): the slot of each position
    bucket = buckets.long().masked_fill(~real[..., None, :], -1)  # (…, R, L)

    # 2. Cut every round into chunks of m slots.
    queries = split_chunks(order, chunk_length)  # (…, R, n, m): positions

    # 3. Each chunk looks at its neighbours: find the position and the round of every key. With
    #    ``wrap`` the chunks of all rounds form one ring, as in the authors' code (not in the paper).
    n_hashes = queries.shape[-3]
    rounds = torch.arange(n_hashes, device=qk.device)[:, None, None]  # (R, 1, 1)
    chunks = torch.stack([queries, rounds.expand_as(queries)], dim=-1)  # (…, R, n, m, 2)
    if options.wrap:
        chunks = chunks.flatten(-4, -3)  # (…, R·n, m, 2)
    before, after = options.chunks_before, options.chunks_after
    windows = look_adjacent(chunks, before, after, options.wrap, fill=-1)  # (…, n, w·m, 2)
    keys, key_rounds = windows.reshape(*queries.shape[:-1], -1, 2).unbind(-1)  # (…, R, n, w·m)

    # 4. Scores. Keys are scaled to length 1, queries are not, so scores can be large, and half
    #    precision would round them too coarsely for a softmax.
    q = gather_rows(qk, queries)  # (…, R, n, m, d)
    k = gather_rows(normalize_keys(qk, options.norm_eps), keys)  # (…, R, n, w·m, d)
    wide = torch.promote_types(qk.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).mT  # (…, R, n, m, w·m); narrower under autocast
    scores = options.scale_for(d) * scores.to(wide)  # by 1 (the authors), or by 1/√d

    # 5. Which keys each query can attend to. A query never sees itself here, but see step 10.
    i = queries[..., :, None]  # (…, R, n, m, 1)
    j = keys[..., None, :]  # (…, R, n, 1, w·m)
    key_is_real = (keys >= 0) & gather_rows(real[..., None], keys).squeeze(-1)  # (…, R, n, w·m)
    visible = key_is_real[..., None, :] & (j != i)  # (…, R, n, m, w·m)
    if options.causal:
        visible = visible & (j <= i)
    if options.within_bucket:  # on a ring, a window may reach into other rounds
        visible = visible & (key_rounds == rounds)[..., None, :]
        visible = visible & (at(bucket, queries)[..., :, None] == at(bucket, keys)[..., None, :])
    if options.window == "rank":  # always within_bucket: its m most recent earlier members
        distance = at(slot, queries)[..., :, None] - at(slot, keys)[..., None, :]
        visible = visible & (distance > 0) & (distance <= chunk_length)

    # 6. Count each key once: a pair that N_ij windows show gets 1/N_ij of its weight in each. (The
    #    clamp concerns pairs that are not visible.)
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

    # 8. Undo the sort. Free slots drop out.
    out = out.flatten(-3, -2).take_along_dim(slot[..., None], -2)  # (…, R, L, d_v)
    lse = lse.flatten(-2).take_along_dim(slot, -1)  # (…, R, L)

    # 9. Merge the rounds into one softmax: each weighs as much as its sum of exponentials.
    #    (A softmax over −∞ alone would be NaN.)
    sees_nothing = (lse == -torch.inf).all(-2)  # (…, L)
    round_weights = lse.masked_fill(sees_nothing[..., None, :], 0.0).softmax(-2)  # (…, R, L)
    out = (round_weights[..., None] * out).sum(-3).to(v.dtype)  # (…, L, d_v)

    # 10. A token attends to itself only if nothing else is visible to it in any round. Padding to
    #     which nothing is visible gets zeros.
    only_self = sees_nothing & real
    out = torch.where(only_self[..., None], v, out)
    if not return_record:
        return out
    weights = weights * at(round_weights, queries)[..., None]
    record = record_of_call(buckets, order, queries, keys, weights, only_self, before)
    return out, record


def at(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of a table (…, R, L) at positions (…, R, n, k): (…, R, n, k); for −1, entry 0."""
    index = positions.clamp(min=0).flatten(-2)  # (…, R, n·k)
    return table.take_along_dim(index, -1).view_as(positions)


def count_windows(
    queries: Tensor,
    keys: Tensor,
    bucket: Tensor,
    slot: Tensor,
    chunk_length: int,
    options: LSHOptions,
) -> Tensor:
    """N_ij: how many windows, over all rounds, show key j to query i: (…, R, n, m, w·m).

    A window is a range of distances from key to query, counted in chunks, or in slots for "rank".
    On a ring (which "rank" excludes) distances are taken modulo the number of all its chunks. Which
    keys are causal or padding is the same in every round, so it need not be counted.
    """
    n_hashes, n_chunks = queries.shape[-3:-1]
    lowest, highest = -options.chunks_after, options.chunks_before
    place = slot // chunk_length  # (…, R, L): the chunk of each position
    if options.window == "rank":
        lowest, highest, place = 1, chunk_length, slot
    ring = n_hashes * n_chunks
    if options.wrap:  # number the chunks through all rounds
        place = place + n_chunks * torch.arange(n_hashes, device=slot.device)[:, None]

    # 1. Places and buckets of the queries and keys above, in every round s: R tensors each.
    query_place = gather_rows(place.mT, queries)[..., :, None, :].unbind(-1)  # (…, R, n, m, 1)
    key_place = gather_rows(place.mT, keys)[..., None, :, :].unbind(-1)  # (…, R, n, 1, w·m)
    if options.within_bucket:
        query_bucket = gather_rows(bucket.mT, queries)[..., :, None, :].unbind(-1)
        key_bucket = gather_rows(bucket.mT, keys)[..., None, :, :].unbind(-1)

    # 2. Add up the windows of the query in round s that hold the key as it stands in round t.
    rounds = range(n_hashes)
    pairs_of_rounds = zip(rounds, rounds, strict=True)
    if options.wrap and not options.within_bucket:
        pairs_of_rounds = product(rounds, rounds)
    n_windows = torch.zeros((), device=slot.device)
    for s, t in pairs_of_rounds:
        distance = query_place[s] - key_place[t]  # (…, R, n, m, w·m)
        if options.wrap:
            seen = count_congruent(distance, lowest, highest, ring)
        else:
            seen = (distance >= lowest) & (distance <= highest)
        if options.within_bucket:
            seen = seen * (query_bucket[s] == key_bucket[s])
        n_windows = n_windows + seen
    return n_windows


def count_congruent(distance: Tensor, lowest: int, highest: int, ring: int) -> Tensor:
    """How many numbers of lowest … highest equal ``distance`` plus a multiple of ``ring``.

    With a ring of 2 chunks, a window of distances 0 … 3 shows a key at distance 1 twice: 1 and 3.
    """
    up_to_highest = (highest - distance) // ring
    below_lowest = (lowest - 1 - distance) // ring
    return up_to_highest - below_lowest
