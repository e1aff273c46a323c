"""What a token's letters tell of its sound: a word that training never spoke can be heard.

The lexical projector compares a frame with the LLM's embedding of every token. Those know what words mean, not how they sound:
of a word that was never spoken in training nothing is learned. Letters nearly tell, so a small convolution over them
adds its own direction to each token's (Settle et al., 2019, "Acoustically grounded word embeddings"); a dictionary tells better,
of the words that it has (pronunciation.py). What the LLM is given stays its own embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LETTERS = 16  # bytes of a token that are looked at


def spellings(tokenizer: Any, size: int) -> list[str]:
    """What each of ``size`` tokens writes, a space in front included; "" past the tokenizer's own."""
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))]
    if any(piece.startswith("\u2581") for piece in pieces):  # SentencePiece, whose decoder drops the space
        written = [piece.replace("\u2581", " ") for piece in pieces]
    else:
        written = tokenizer.batch_decode([[i] for i in range(len(pieces))], clean_up_tokenization_spaces=False)
    return [*written, *[""] * (size - len(written))]


def control(tokenizer: Any) -> dict[str, int]:
    """The tokens that only a chat template writes, by their text: what ends a turn, begins another, calls a tool."""
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
    # Also added, by some: line breaks and tags of HTML, which a text may well hold.
    return {str(t): i for i, t in added.items() if t.special or (str(t).strip() and str(t) in template)}


def behind_others(written: Sequence[str]) -> Tensor:
    """(V,): of each token the one that writes the same behind another word: of ``If`` that of `` If``, else itself.

    A text's first word has no space in front. CTC learns so how sentences begin, wherever they do.
    """
    numbers = {text: number for number, text in enumerate(written)}
    begins = [len(text) > 1 and text.istitle() and text.isalpha() for text in written]
    return torch.tensor(
        [numbers.get(" " + t, i) if begin else i for i, (t, begin) in enumerate(zip(written, begins, strict=True))]
    )


class Written(nn.Module):
    """Tokens (C,), written in an alphabet -> the directions (C, ``out``) of how they sound."""

    letters: Tensor  # (V, LETTERS) uint8, 0 past a token's end

    def __init__(self, letters: Tensor, out: int, hidden: int, kept: bool) -> None:
        super().__init__()
        self.register_buffer("letters", letters, persistent=kept)
        # A letter, the one before and the one after: three rows, added up.
        self.around = nn.Embedding(3 * 256, hidden)
        self.place = nn.Parameter(torch.randn(LETTERS, hidden) * 0.1)
        nn.init.normal_(self.around.weight, std=0.3)
        self.across, self.outer = nn.Linear(3 * hidden, hidden), nn.Linear(4 * hidden, out)

    def added(self, ids: Tensor, rows: Tensor) -> Tensor:
        """``rows`` (C, out), and to those that are written anything of length one that tells how they sound."""
        padded = F.pad(self.letters[ids].int(), (1, 1))  # (C, 1 + LETTERS + 1)
        there = padded[:, 1:-1] > 0
        owner, at = there.nonzero(as_tuple=True)  # of all L letters, token after token: whose each is, and which
        if not len(owner):
            return rows
        three = padded.unfold(1, 3, 1)[there] + torch.arange(0, 3 * 256, 256, device=ids.device)  # (L, 3)
        x = F.gelu(self.around(three).sum(dim=1) + self.marks(ids[owner], at))  # (L, hidden)
        first = at == 0
        last = first.roll(-1)  # the next letter begins another token
        before, after = x.roll(1, dims=0), x.roll(-1, dims=0)
        near = [before.masked_fill(first[:, None], 0.0), x, after.masked_fill(last[:, None], 0.0)]
        x = F.gelu(self.across(torch.cat(near, dim=-1))) + x + self.place[at]
        written, none = there.any(dim=1), x.new_zeros(len(ids), x.shape[1])
        mean = none.index_add(0, owner, x)[written] / there.sum(dim=1)[written, None]
        most = none.scatter_reduce(0, owner[:, None].expand_as(x), x, "amax", include_self=False)[written]
        told = F.normalize(self.outer(torch.cat([x[first], x[last], most, mean], dim=-1)), dim=-1)
        return rows.index_add(0, written.nonzero()[:, 0], told.to(rows.dtype))

    def marks(self, ids: Tensor, at: Tensor) -> Tensor | float:
        """What else is known of the letters ``at`` (L,) of the tokens ``ids`` (L,): (L, hidden)."""
        return 0.0


class Spelling(Written):
    """Tokens (C,) and the directions (C, ``out``) of their embeddings -> the directions that sound like them.

    ``pronunciation``: beside the letters, how they are said, as far as that is ``told``; the adapter keeps it.
    """

    capital: Tensor

    def __init__(self, written: Sequence[str], out: int, hidden: int = 128, pronunciation: bool = False) -> None:
        told = [[(byte, c.isupper()) for c in text for byte in c.lower().encode()] for text in written]
        super().__init__(_rows([[byte for byte, _ in text] for text in told]), out, hidden, kept=False)
        self.register_buffer("capital", _rows([[upper for _, upper in text] for text in told]), persistent=False)
        self.upper = nn.Parameter(torch.zeros(hidden))
        self.share = nn.Parameter(torch.tensor(0.5))  # of the embedding, beside the letters
        self.sounds = Written(_rows([[]] * len(written)), out, hidden, kept=True) if pronunciation else None

    def tell(self, sounds: Sequence[str]) -> None:
        """How each token is pronounced, "" where that is not known (pronunciation.py)."""
        assert self.sounds is not None
        alphabet = {phone: number for number, phone in enumerate(sorted({" ", *"".join(sounds)}), start=1)}
        self.sounds.letters.copy_(_rows([[alphabet[phone] for phone in text] for text in sounds]))

    def marks(self, ids: Tensor, at: Tensor) -> Tensor:
        return self.capital[ids, at, None] * self.upper

    def forward(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        begun = embeddings * self.share
        rows = self.added(ids, begun)
        if self.sounds is not None:
            rows = self.sounds.added(ids, rows)
        return embeddings if rows is begun else F.normalize(rows, dim=-1)


def _rows(texts: Sequence[Sequence[int]]) -> Tensor:
    """(V, LETTERS) uint8: the first LETTERS of each, 0 past its end."""
    padded = b"".join(bytes(text[:LETTERS]).ljust(LETTERS, b"\0") for text in texts)
    return torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(-1, LETTERS)
