"""Beam search for the encoder-decoder: the likeliest output, or one that a length penalty prefers.

The definition is ``beam_search`` in ``spec``; here many sentences are searched at once. Every step
computes the decoder over the whole prefix: what is maximised is the probability that the trained
model gives.
"""

import torch

from reformer_ref._arguments import shown
from reformer_ref._tensors import evaluating, require_padding_mask
from reformer_ref.generation.options import check_beams


def beam_search(
    model, source, source_padding_mask=None, *, start, end, max_new_tokens, beams=1, length_penalty=0.0,
    check_stop=lambda: None,
):  # fmt: skip
    """For each source the best output that the search finds: a list of (tokens, score), as
    ``spec.beam_search``.

    model: `ReformerEncoderDecoder`; source int64 (B, L_s), its mask bool (B, L_s), True = real
    token, or None. start, end: the tokens that begin and end a target; the tokens returned are
    those between, int64 (n,) on the CPU. After ``max_new_tokens`` tokens, the end included, the
    search is over, and the best unfinished output stands where none is finished. beams=1 is greedy.
    check_stop: called before every step. The model's stored rotations are used, dropout never.
    ValueError or TypeError for arguments that do not fit.
    """
    if not hasattr(model, "decoder_config"):
        raise TypeError(f"model must be a ReformerEncoderDecoder, got {type(model).__name__}")
    vocab_size, longest = model.decoder_config.vocab_size, model.decoder_config.max_length
    check_beams(vocab_size, start, end, max_new_tokens, beams, length_penalty)
    if max_new_tokens > longest:
        raise ValueError(
            f"max_new_tokens must be at most max_length = {longest}, got {max_new_tokens}"
        )
    if not callable(check_stop):
        raise TypeError(f"check_stop must be a function, got {shown(check_stop)}")
    with evaluating(model):
        encoder_output = model.encode(source, source_padding_mask)
        whole_mask = require_padding_mask(source_padding_mask, source.shape, source.device)
        search = _Search(
            len(source), beams, start, end, max_new_tokens, length_penalty, source.device
        )
        while search.going:
            check_stop()
            rows = search.alive.repeat_interleave(beams)
            mask = None if whole_mask is None else whole_mask[rows]
            logits = model.decode(search.prefixes.flatten(0, 1), encoder_output[rows], mask)[:, -1]
            search.extend(torch.log_softmax(logits.double(), -1))
    return search.best


class _Search:
    """The living prefixes of every sentence whose search goes on, and the best finished output of
    each.
    """

    def __init__(self, sentences, beams, start, end, max_new_tokens, length_penalty, device):
        self.beams, self.end, self.limit, self.penalty = beams, end, max_new_tokens, length_penalty
        self.alive = torch.arange(sentences, device=device)  # the sentences whose search goes on
        self.prefixes = torch.full((sentences, beams, 1), start, device=device)
        self.scores = torch.full((sentences, beams), -torch.inf, dtype=torch.float64, device=device)
        self.scores[:, 0] = 0.0  # one prefix to begin with: the others do not exist yet
        self.finished = torch.zeros(sentences, dtype=torch.int64, device=device)
        self.best = [(torch.empty(0, dtype=torch.int64), -torch.inf)] * sentences

    @property
    def going(self):
        """Whether any sentence is searched still."""
        return len(self.alive) > 0

    def extend(self, log_p):
        """One token more for every living prefix; log_p float64 (sentences · beams, vocab_size)."""
        sentences, vocab_size = len(self.alive), log_p.shape[-1]
        total = (self.scores[..., None] + log_p.view(sentences, self.beams, vocab_size)).flatten(1)
        ranked = total.sort(
            dim=1, descending=True, stable=True
        )  # on a tie the earlier prefix, the lower token
        # one end for each prefix at most: among so many there are `beams` that do not end
        scores, chosen = ranked.values[:, : 2 * self.beams], ranked.indices[:, : 2 * self.beams]
        grown = torch.cat(
            [self._parents(chosen // vocab_size), (chosen % vocab_size)[..., None]], -1
        )
        ends, last = grown[..., -1] == self.end, grown.shape[-1] - 1 == self.limit
        for i, k in (ends & torch.isfinite(scores))[:, : self.beams].nonzero().tolist():
            self._keep(i, grown[i, k, 1:-1], scores[i, k].item(), grown.shape[-1] - 1)
        order = (
            ends.int().sort(dim=1, stable=True).indices[:, : self.beams]
        )  # the best that do not end
        self.scores = scores.masked_fill(ends, -torch.inf).gather(1, order)
        self.prefixes = grown.gather(1, order[..., None].expand(-1, -1, grown.shape[-1]))
        going = self._can_win() & (self.finished[self.alive] < self.beams)
        if last:
            for i in (self.finished[self.alive] == 0).nonzero()[:, 0].tolist():
                self._keep(i, self.prefixes[i, 0, 1:], self.scores[i, 0].item(), self.limit)
            going[:] = False
        self._only(going.nonzero()[:, 0])

    def _can_win(self):
        """Whether the best living prefix could still become better than the best that is finished.

        Log-probabilities only fall, and are divided by most at the greatest length: with this, the
        result is the same.
        """
        best = torch.tensor(
            [self.best[i][1] for i in self.alive.tolist()],
            dtype=torch.float64,
            device=self.scores.device,
        )
        return self.scores[:, 0] / self._divisor(self.limit) > best

    def _divisor(self, length):
        return ((5 + length) / 6) ** self.penalty

    def _parents(self, parent):
        shape = (*parent.shape, self.prefixes.shape[-1])
        return self.prefixes.gather(1, parent[..., None].expand(shape))

    def _keep(self, row, tokens, log_p, length):
        """An output has come to its end; ``length`` counts the end."""
        sentence = int(self.alive[row])
        self.finished[sentence] += 1
        score = log_p / self._divisor(length)
        if score > self.best[sentence][1]:
            self.best[sentence] = (tokens.cpu().clone(), score)

    def _only(self, rows):
        """Go on with these rows alone."""
        self.alive, self.prefixes, self.scores = (
            self.alive[rows],
            self.prefixes[rows],
            self.scores[rows],
        )
