"""A second ear, for phones: a reading must also sound like what was heard.

The lexical projector chooses among all tokens of the LLM, and most of them training never said. Of phones there are some
forty, and each was said thousands of times: a small CTC (Graves et al., 2006) over the same frames hears those, and what
a reading sounds like (pronunciation.py) is held against it,

    log P_phones(phones of the reading | audio), the sum over all alignments,

so that a word may win that nobody ever said in training (inference/readings.py), and none where no phone is heard.
No phone ever reaches the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .projector import pool
from .spelling import Written

PHONES = 64  # of which an English dictionary uses 46; 0 is the blank
SPACE = 1  # a tokenizer's space sorts before all phones, and has no sound
A_SECOND = 25.0  # steps: people say 10 to 15 phones in that time
NEVER = -1e30
Reading = tuple[int, ...]


class Phones(nn.Module):
    """(B, T, ``width``) -> which phone is heard when. ``sounds`` knows the phones of each token of the LLM, and belongs
    to the projector's spelling."""

    def __init__(self, width: int, rate: float, sounds: Written, hidden: int = 320, reach: int = 3) -> None:
        super().__init__()
        self.kernel = max(1, round(rate / A_SECOND))
        self.norm = nn.LayerNorm(width * self.kernel)
        self.inner = nn.Linear(width * self.kernel, hidden)
        self.across = nn.Conv1d(hidden, hidden, 2 * reach + 1, padding=reach)
        self.outer = nn.Linear(hidden, PHONES)
        self._sounds = [sounds]  # in a list: seen, but no part of this module

    def said(self, tokens: Sequence[int]) -> list[int]:
        """The phones of a text's tokens; of what has no sound, such as a comma, none."""
        return [phone for row in self._sounds[0].letters[list(tokens)].tolist() for phone in row if phone > SPACE]

    def forward(self, h: Tensor, lengths: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """-> log-probabilities (B, T', PHONES), float32, and lengths (B,)."""
        pooled, lengths = pool(h, lengths, self.kernel, "stack")
        inside = torch.arange(pooled.shape[1], device=h.device) < lengths[:, None]
        x = F.dropout(self.norm(pooled.to(self.norm.weight.dtype)), dropout, training=dropout > 0)
        x = F.gelu(self.inner(x)).masked_fill(~inside[..., None], 0.0)
        x = x + F.gelu(self.across(x.mT).mT)
        x = self.outer(F.dropout(x, dropout / 2, training=dropout > 0))
        return x.float().log_softmax(dim=-1), lengths

    def ctc_loss(self, h: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]], dropout: float = 0.0) -> Tensor:
        """Mean over clips of CTC's negative log-likelihood divided by the number of phones. ``targets`` are token ids."""
        told, lengths = self(h, lengths, dropout)
        phones, counts = _padded([self.said(tokens) for tokens in targets], h.device)
        return F.ctc_loss(told.transpose(0, 1), phones, lengths, counts, zero_infinity=True)


class Sound:
    """A clip, heard as (T', PHONES), and readings of it that grow: log P_phones of each.

    The forward variables of CTC, of all steps at once: after each phone, (2, T' + 1), log P that all so far were said by a
    step, and that this step is the last phone's, or a blank's. On the CPU: they are many, and small.
    """

    def __init__(self, told: Tensor, said: Callable[[Sequence[int]], list[int]]) -> None:
        self.sums = F.pad(told.detach().double().cpu().cumsum(dim=0), (0, 0, 1, 0))  # (T' + 1, PHONES)
        silence = self.sums[:, 0]
        self.said, self.nothing = said, float(silence[-1])
        start = torch.stack([torch.full_like(silence, NEVER), silence])
        self.known: dict[Reading, tuple[Tensor, int, float]] = {(): (start, 0, 0.0)}  # and the last phone, and log P

    def begins(self, readings: Sequence[Reading]) -> list[float]:
        """log P that the clip begins with the phones of each, whatever follows (Watanabe et al., 2017, "Hybrid CTC/attention
        architecture for end-to-end speech recognition"). Each goes on from one of the last call's."""
        grown, phones = [], []
        for reading in readings:
            end = len(reading)
            while reading[:end] not in self.known:
                end -= 1
            grown.append(self.known[reading[:end]])
            phones.append(self.said(reading[end:]))
        ends, last = torch.stack([end for end, _, _ in grown]), torch.tensor([phone for _, phone, _ in grown])
        chances = torch.tensor([chance for _, _, chance in grown], dtype=torch.float64)
        for place in range(max(map(len, phones))):
            rows = [row for row, more in enumerate(phones) if len(more) > place]
            new = torch.tensor([phones[row][place] for row in rows])
            ends[rows], chances[rows] = self._say(ends[rows], last[rows], new)
            last[rows] = new
        told: list[float] = chances.tolist()
        self.known = dict(zip(readings, zip(ends, last.tolist(), told, strict=True), strict=True))
        return told

    def _say(self, ends: Tensor, last: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """One phone more, ``new`` (N,): its ``ends`` (N, 2, T' + 1), and log P (N,) that it is said at any step."""
        phone, blank = ends.unbind(dim=1)
        before = torch.where((last == new)[:, None], blank, torch.logaddexp(phone, blank))[:, :-1]
        sums, silence = self.sums[:, new].T, self.sums[:, 0]
        chance = (before + sums.diff()).logsumexp(dim=-1)
        # P_t = (P_{t-1} + before_{t-1}) p_t, which is a cumulative sum of what entered, each less all that it never had to say.
        phone = _later(sums[:, 1:] + torch.logcumsumexp(before - sums[:, :-1], dim=-1))
        blank = _later(silence[1:] + torch.logcumsumexp(phone[:, :-1] - silence[:-1], dim=-1))
        return torch.stack([phone, blank], dim=1), chance

    def whole(self) -> list[float]:
        """log P that each of the last call's readings is all that was said."""
        return [float(torch.logaddexp(ends[0, -1], ends[1, -1])) for ends, _, _ in self.known.values()]

    def silent(self, reading: Reading) -> bool:
        """Whether no phone at all was heard rather than this reading, which goes on from one of the last call's: a dog that
        barks is no "who"."""
        self.begins([reading])
        return self.nothing > self.whole()[0]


def _later(steps: Tensor) -> Tensor:
    """(N, T') -> (N, T' + 1): before the first step there is nothing."""
    return F.pad(steps, (1, 0), value=NEVER)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Phones of N texts -> (N, S), and how many each has (N,)."""
    longest = max([1, *map(len, rows)])
    padded = torch.tensor([[*row, *[SPACE] * (longest - len(row))] for row in rows], device=device)
    return padded, torch.tensor([len(row) for row in rows], device=device)
