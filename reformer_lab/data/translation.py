"""Sentence pairs as bytes: stored or from a file, split, padded batches, two baselines without training, BLEU.

A sentence is the sequence of its UTF-8 bytes, so all languages fit and no word is unknown; two more tokens begin and
end a target. A source ends with END too.
"""

import collections
import itertools
import lzma
import re
from importlib import resources

import numpy as np
from reformer_ref._arguments import as_array, as_integers, clear_errors, require_int, short_repr

from reformer_lab.training.files import as_path

START, END, VOCAB_SIZE = 256, 257, 258
MOST_BYTES = 2**30  # of a file of pairs
N_STORED = 20_000  # pairs in english_german.tsv.xz
_WORD = re.compile(r"\w+|[^\w\s]")


def english_german(count: int) -> list[tuple[str, str]]:
    """Return the first ``count`` of 20,000 stored sentence pairs, English and German.

    A small grammar of 130 words a side made them: three genders, four cases, separable verbs, the verb in second
    place or last, *nicht* and *kein*. The sentences mean little; their grammar is right, and no English
    sentence occurs twice.

    Raises:
        ValueError: ``count`` is not from 1 to 20,000.
    """
    count = require_int("count", count, 1, N_STORED)
    content = resources.files("reformer_lab.data").joinpath("english_german.tsv.xz").read_bytes()
    lines = lzma.decompress(content).decode().splitlines()
    return [tuple(line.split("\t")) for line in lines[:count]]


def read_pairs(path):
    """The pairs (source, target) of a text file in UTF-8, a line each, divided by a tab: a list of tuples of str.

    Further columns (a source, a licence) and empty lines are left out; a repeated pair is kept once. ValueError, with
    the line's number, for a line without a tab, with an empty side, or not in UTF-8; for a file that is missing, too
    long, or has fewer than two pairs.
    """
    path = as_path("path", path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} must be a file, it is a folder or a device")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} must hold at most {MOST_BYTES:,} bytes, it has {path.stat().st_size:,}")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    pairs = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            columns = [column.strip() for column in line.decode("utf-8").split("\t")]
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} of {path} must be UTF-8: {error.reason} at byte {error.start}") from None
        if len(columns) < 2 or not columns[0] or not columns[1]:
            raise ValueError(f"line {number} of {path} must be source, tab, target, got {short_repr(line)}")
        pairs[columns[0], columns[1]] = None
    if len(pairs) < 2:
        raise ValueError(f"{path} must hold at least 2 pairs, one to train on and one held out, got {len(pairs)}")
    return list(pairs)


def _require_text(name, text):
    """``text`` if it is a str that UTF-8 can hold; TypeError or ValueError otherwise."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text, got {short_repr(text)} ({type(text).__name__})")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be a text that UTF-8 can hold, got {short_repr(text)}") from None
    return text


def _require_texts(name, texts):
    """``texts`` if it is a list or tuple of texts."""
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name} must be a list of texts, got {short_repr(texts)}")
    for text in texts:
        _require_text(name, text)
    return texts


def _require_pairs(pairs):
    """``pairs`` if it is a list or tuple of pairs of texts."""
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(f"pairs must be a list of pairs of texts, got {short_repr(pairs)}")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise TypeError(f"pairs must hold pairs (source, target) alone, got {short_repr(pair)}")
        for text in pair:
            _require_text("a text of pairs", text)
    return pairs


def split(pairs, held_out, seed=0):
    """(train, held-out): ``held_out`` pairs drawn at random; none of their sources is left among the training pairs."""
    _require_pairs(pairs)
    held_out = require_int("held_out", held_out, 1, max(len(pairs) - 1, 1))
    order = np.random.Generator(np.random.Philox(require_int("seed", seed, minimum=0))).permutation(len(pairs))
    chosen = [pairs[i] for i in sorted(order[:held_out])]
    sources = {source for source, _ in chosen}
    train = [pairs[i] for i in sorted(order[held_out:]) if pairs[i][0] not in sources]
    if not train:
        raise ValueError("pairs must have different sources: none is left to train on")
    return train, chosen


def fitting(pairs, max_length):
    """Those pairs whose tokens, start and end included, are at most ``max_length`` on both sides."""
    max_length = require_int("max_length", max_length)
    return [pair for pair in _require_pairs(pairs) if max(len(tokens) for tokens in to_tokens(*pair)) <= max_length]


def to_tokens(source, target):
    """(source bytes and END, START and target bytes and END), lists of int."""
    source = _require_text("source", source)
    target = _require_text("target", target)
    return [*source.encode(), END], [START, *target.encode(), END]


def to_text(tokens):
    """The text of a target's tokens, without START and END; bytes that are not UTF-8 become U+FFFD."""
    tokens = as_array("tokens", tokens)
    tokens = as_integers("tokens", tokens) if tokens.size else np.empty(0, np.int64)
    if tokens.ndim != 1 or (tokens < 0).any():
        raise ValueError(f"tokens must be numbers ≥ 0 in a row, got {short_repr(tokens)}")
    return bytes(tokens[tokens < 256].tolist()).decode("utf-8", "replace")


def padded(pairs):
    """(source, target, source mask, target mask): int64 (B, L_s), (B, L_t), bool likewise, True = real token."""
    if not _require_pairs(pairs):
        raise ValueError("pairs must hold at least one pair, got none")
    tokens, masks = [], []
    for rows in zip(*(to_tokens(*pair) for pair in pairs), strict=True):  # all sources, all targets
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        side = np.zeros(mask.shape, np.int64)
        side[mask] = np.concatenate(rows)
        tokens.append(side)
        masks.append(mask)
    return (*tokens, *masks)


class Batches:
    """Training batches of ``batch`` pairs of similar length, each pair once in an epoch, in another order in each.

    The batch of a step is a function of (pairs, batch, seed, step) alone; the order of the current epoch is cached.
    """

    POOL = 32  # batches among which pairs are sorted by length, so that little is padded

    def __init__(self, pairs, batch, seed):
        self.pairs = _require_pairs(pairs)
        self.seed = require_int("seed", seed, 0)
        self.batch = require_int("batch", batch, 1, len(pairs))
        self.lengths = np.array([sum(map(len, to_tokens(*pair))) for pair in pairs])
        self._epoch, self._rows = None, None

    def rows(self, step):
        """The numbers of the pairs in the batch of this step: int64 (batch,)."""
        per_epoch = len(self.pairs) // self.batch
        epoch, place = divmod(require_int("step", step, minimum=0), per_epoch)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
            order = rng.permutation(len(self.pairs))[: per_epoch * self.batch]
            pool = np.arange(len(order)) // (self.batch * self.POOL)
            order = order[np.lexsort((self.lengths[order], pool))]
            self._epoch, self._rows = epoch, rng.permutation(order.reshape(per_epoch, self.batch))
        return self._rows[place]

    def at(self, step):
        """The batch of this step, as `padded`."""
        return padded([self.pairs[i] for i in self.rows(step)])


# ---- baselines


def words(text):
    """Words and punctuation marks: a list of str. The first word is in small letters, as its capital means nothing."""
    tokens = _WORD.findall(_require_text("text", text))
    return [word.lower() if i == 0 else word for i, word in enumerate(tokens)]


@clear_errors
def sentence(words):
    """Words and marks as a text again: no blank before a mark, a capital in front."""
    text = "".join(word if _is_mark(word) else f" {word}" for word in words).strip()
    return text[:1].upper() + text[1:]


def _is_mark(word):
    return not word[0].isalnum()


class WordTable:
    """A dictionary learned from pairs: the likeliest translation of each word, by IBM's model 1 (Brown et al. 1993).

    Each target word comes from a source word, or from none; expectation-maximisation estimates from which. Words are
    translated one by one, in their order; marks and unknown words are copied.
    """

    def __init__(self, pairs, rounds=8):
        rounds = require_int("rounds", rounds, 1, 1000)
        source_ids, target_ids = collections.defaultdict(), collections.defaultdict()
        source_ids.default_factory, target_ids.default_factory = (source_ids.__len__, target_ids.__len__)
        source_ids[None]  # the source of words that come from none
        s, t, place, places = [], [], [], 0
        for source, target in _require_pairs(pairs):
            from_words = [0, *(source_ids[word] for word in words(source) if not _is_mark(word))]
            for word in filter(lambda word: not _is_mark(word), words(target)):
                s += from_words
                t += [target_ids[word]] * len(from_words)
                place += [places] * len(from_words)
                places += 1
        s, t, place = (np.array(x, np.int64) for x in (s, t, place))
        known, entry = np.unique(s * len(target_ids) + t, return_inverse=True)
        s_of, t_of = np.divmod(known, max(len(target_ids), 1))
        p = np.ones(len(known))
        for _ in range(rounds):
            posterior = p[entry] / np.bincount(place, p[entry])[place]
            counts = np.bincount(entry, posterior, len(known))
            p = counts / np.bincount(s_of, counts)[s_of]
        order = np.lexsort((-t_of, p))  # of equal ones the word that came first in the pairs wins
        best = dict(zip(s_of[order].tolist(), t_of[order].tolist(), strict=True))  # the last one stays
        names = list(target_ids)
        self.table = {word: names[best[i]] for word, i in source_ids.items() if word is not None and i in best}

    def translate(self, source):
        """A text, word by word."""
        return sentence(self.table.get(word, word) for word in words(_require_text("source", source)))


class Nearest:
    """The translation of the training source with the most words and pairs of words in common, weighted by rarity."""

    def __init__(self, pairs):
        if not _require_pairs(pairs):
            raise ValueError("pairs must hold at least one pair, got none")
        self.targets, postings = [target for _, target in pairs], collections.defaultdict(list)
        for i, (source, _) in enumerate(pairs):
            for feature in self._features(source):
                postings[feature].append(i)
        self.weight = {f: np.log(1.0 + len(pairs) / len(rows)) for f, rows in postings.items()}
        self.postings = {f: np.array(rows) for f, rows in postings.items()}
        self.size = np.zeros(len(pairs))
        for f, rows in self.postings.items():
            self.size[rows] += self.weight[f]

    def translate(self, source):
        """The target of the pair whose source is most similar: common weight over that of both (Dice)."""
        common, size = np.zeros(len(self.targets)), 0.0
        for f in self._features(_require_text("source", source)):
            size += self.weight.get(f, 0.0)
            if f in self.postings:
                common[self.postings[f]] += self.weight[f]
        return self.targets[int(np.argmax(common / (size + self.size)))]

    @staticmethod
    def _features(text):
        tokens = words(text)
        return {*tokens, *itertools.pairwise(tokens)}


# ---- the score


def bleu(translations, references):
    """(BLEU in percent, its signature) by sacreBLEU: corpus BLEU of texts, cased, with its own tokens ("13a").

    ModuleNotFoundError, with the command that installs it, where sacrebleu is missing.
    """
    _require_texts("translations", translations)
    if len(translations) != len(_require_texts("references", references)) or not references:
        raise ValueError(
            f"translations must be as many as references, at least one, got {len(translations)} and {len(references)}"
        )
    score = sacrebleu_module().BLEU()
    return score.corpus_score(list(translations), [list(references)]).score, str(score.get_signature())


def sacrebleu_module():
    """``sacrebleu.metrics``; ModuleNotFoundError with the command that installs it where it is missing."""
    try:
        import sacrebleu.metrics
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("sacrebleu"):
            raise
        raise ModuleNotFoundError(
            "BLEU needs the package 'sacrebleu', which is not installed: pip install 'reformer_ref[lab]'"
        ) from None
    return sacrebleu.metrics
