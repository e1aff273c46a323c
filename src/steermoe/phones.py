"""A second ear, for phones: a reading must also sound like what was heard.

The lexical projector chooses among all tokens of the LLM, and most of them training never said. Of phones there are some
forty, and each was said thousands of times: a small CTC (Graves et al., 2006) over the same frames hears those, and what
a reading sounds like (pronunciation.py) is held against it,

    log P_phones(phones of the reading | audio), the sum over all alignments,

so that a word may win that nobody ever said in training (inference/readings.py), and none where no phone is heard.
No phone ever reaches the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .projector import pool
from .spelling import Written

PHONES = 64  # of which an English dictionary uses 46; 0 is the blank
SPACE = 1  # a tokenizer's space sorts before all phones, and has no sound
A_SECOND = 25.0  # steps: people say 10 to 15 phones in that time


class Phones(nn.Module):
    """(B, T, ``width``) -> which phone is heard when. ``sounds`` knows the phones of
    each token of the LLM, and belongs to the projector's spelling."""

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

    def likelihoods(self, told: Tensor, readings: Sequence[Sequence[int]]) -> list[float]:
        """What a clip was heard as, (T', PHONES), and token ids of each of N readings -> their log P_phones."""
        phones, counts = _padded([self.said(tokens) for tokens in readings], told.device)
        many = told[:, None].expand(-1, len(readings), -1)
        lengths = torch.full((len(readings),), len(told), device=told.device)
        return (-F.ctc_loss(many, phones, lengths, counts, reduction="none")).tolist()

    def silent(self, told: Tensor, reading: Sequence[int]) -> bool:
        """Whether a clip was heard as no phone at all rather than as this reading: a dog that barks is no "who"."""
        said, nothing = self.likelihoods(told, [reading, ()])
        return nothing > said


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Phones of N texts -> (N, S), and how many each has (N,)."""
    longest = max(1, *map(len, rows), 1)
    padded = torch.tensor([[*row, *[SPACE] * (longest - len(row))] for row in rows], device=device)
    return padded, torch.tensor([len(row) for row in rows], device=device)
