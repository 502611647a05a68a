"""Beam search for the encoder-decoder: the likeliest output, or one that a length penalty prefers.

The definition is ``beam_search`` in ``spec``; here many sentences are searched at once. Every step
computes the decoder over the whole prefix: what is maximised is the probability that the trained
model gives. Not checked.
"""

import torch

from reformer_ref._tensors import evaluating


def beam_search(
    model, source, source_mask, start, end, max_new_tokens, beams, length_penalty, check_stop
):
    """For each source the best output that is found: a list of (tokens, score)."""
    with evaluating(model):
        encoder_output = model.encode(source, source_mask)
        search = BeamSearch(
            len(source), beams, start, end, max_new_tokens, length_penalty, source.device
        )
        while len(search.sentences):
            check_stop()
            rows = search.sentences.repeat_interleave(beams)
            mask = None if source_mask is None else source_mask[rows]
            prefixes = search.prefixes.flatten(0, 1)  # (rows, n)
            logits = model.decode(prefixes, encoder_output[rows], mask)[:, -1]
            search.extend(torch.log_softmax(logits.double(), -1))
    return search.best


class BeamSearch:
    """The live prefixes of every sentence that is still searched, and the best finished output of
    each sentence.
    """

    def __init__(self, n_sentences, beams, start, end, max_new_tokens, length_penalty, device):
        self.beams, self.end = beams, end
        self.max_new_tokens, self.length_penalty = max_new_tokens, length_penalty
        self.sentences = torch.arange(n_sentences, device=device)  # those that are still searched
        self.prefixes = torch.full((n_sentences, beams, 1), start, device=device)
        shape = (n_sentences, beams)
        self.log_p = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.log_p[:, 0] = 0.0  # one prefix to begin with: the others do not exist yet
        self.n_finished = torch.zeros(n_sentences, dtype=torch.int64, device=device)
        self.best = [(torch.empty(0, dtype=torch.int64), -torch.inf)] * n_sentences

    def extend(self, next_log_p):
        """Add one token to every live prefix; next_log_p float64 (sentences·beams, vocab_size)."""
        beams, vocab_size = self.beams, next_log_p.shape[-1]
        # 1. Rank all extensions; on a tie the earlier prefix, then the lower token. Each prefix
        #    has one extension that ends, so among 2·beams there are ``beams`` that do not.
        log_p = self.log_p[..., None] + next_log_p.view(-1, beams, vocab_size)
        ranked = log_p.flatten(1).sort(dim=1, descending=True, stable=True)
        log_p = ranked.values[:, : 2 * beams]
        index = ranked.indices[:, : 2 * beams]
        parents = gather_prefixes(self.prefixes, index // vocab_size)
        extended = torch.cat([parents, (index % vocab_size)[..., None]], -1)  # (…, 2·beams, n + 2)
        ends = extended[..., -1] == self.end
        n_tokens = extended.shape[-1] - 1

        # 2. Of the best ``beams``, those that end are finished.
        finished = (ends & torch.isfinite(log_p))[:, :beams]
        for i, k in finished.nonzero().tolist():
            self._finish(i, extended[i, k, 1:-1], log_p[i, k].item(), n_tokens)

        # 3. The best ``beams`` that do not end live on.
        order = ends.int().sort(dim=1, stable=True).indices[:, :beams]
        self.log_p = log_p.masked_fill(ends, -torch.inf).gather(1, order)
        self.prefixes = gather_prefixes(extended, order)

        # 4. Which sentences are searched on.
        searching = self._can_improve() & (self.n_finished[self.sentences] < beams)
        if n_tokens == self.max_new_tokens:
            unfinished = self.n_finished[self.sentences] == 0
            for i in unfinished.nonzero()[:, 0].tolist():
                self._finish(i, self.prefixes[i, 0, 1:], self.log_p[i, 0].item(), n_tokens)
            searching[:] = False
        self.sentences = self.sentences[searching]
        self.prefixes = self.prefixes[searching]
        self.log_p = self.log_p[searching]

    def _can_improve(self):
        """Whether the best live prefix could still become better than the best finished output.

        Log-probabilities only fall, and are divided by most at the greatest length.
        """
        best = [self.best[i][1] for i in self.sentences.tolist()]
        bound = self.log_p[:, 0] / self._divisor(self.max_new_tokens)
        return bound > bound.new_tensor(best)

    def _divisor(self, length):
        return ((5 + length) / 6) ** self.length_penalty

    def _finish(self, row, tokens, log_p, length):
        """Record an output that ends; ``length`` counts the end."""
        sentence = int(self.sentences[row])
        self.n_finished[sentence] += 1
        score = log_p / self._divisor(length)
        if score > self.best[sentence][1]:
            self.best[sentence] = (tokens.cpu().clone(), score)


def gather_prefixes(prefixes, index):
    """prefixes (sentences, beams, n) at index (sentences, m): (sentences, m, n)."""
    return prefixes.gather(1, index[..., None].expand(*index.shape, prefixes.shape[-1]))
