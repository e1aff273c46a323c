"""One answer, token by token: free text, JSON under a grammar, or free text that turns into a call."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .grammar import Constraint
from .held import Held, Slot, Wanted

if TYPE_CHECKING:
    from .ears import Ears

CLOSED_WITHIN = 2000  # tokens over the budget: more than any schema that is told to an LLM requires
COLD = 1e-6  # a lower temperature says no other text, and may be 0 in float32
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Options:
    """How one answer is written; names and meanings are those of the OpenAI API, but for ``max_new_tokens``."""

    max_new_tokens: int = 256
    """Free text ends here; a call or a JSON answer begins to close at three quarters, and is always completed."""
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """Of the draws where ``temperature`` is not 0: one seed, one text."""
    stop: str | Sequence[str] = ()
    """Texts before which the answer ends."""
    tool_choice: str | dict[str, Any] = "auto"
    """``auto``, ``none``, ``required``, a tool's name, or ``{"type": "function", "function": {"name": ...}}``."""
    response_format: dict[str, Any] | None = None
    """``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema": ...}}``."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={self.max_new_tokens}: 1 or more is needed")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature={self.temperature}: 0 or more is needed")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p}: more than 0 and at most 1 is needed")
        if self.stop is None or not all(isinstance(stop, str) for stop in self.stop):
            raise UsageError(f"stop={self.stop!r}: a text, or a list of texts, is needed")

    @property
    def stops(self) -> list[str]:
        return [s for s in ([self.stop] if isinstance(self.stop, str) else self.stop) if s]


class Ask(NamedTuple):
    """A writer asks for its next token; ``closing``: of those that are allowed one that leads to the end."""

    closing: bool = False


@dataclass
class Writer:
    """Writes after ``slots``; ``steps`` gives out text that is sure to stay, and asks for each token, which it is sent: one that
    it would ``pick`` after what is ``wanted``, or of an LLM that is elsewhere. What came of it is in the other fields.

    Without ``callable`` the ``constraint`` binds from the first token. With it, it binds the call: from the first token
    if one must be made, else from where the LLM begins one, which is cut back to there and begun properly.
    """

    ears: Ears
    held: Held
    heard: Mapping[str, Tensor]
    slots: list[Slot]
    options: Options
    constraint: Constraint | None = None
    callable: bool = False
    must_call: bool = False
    forcing: bool = True
    """Tokens without an alternative are taken unasked; False: only while closing."""

    def __post_init__(self) -> None:
        self.tokenizer, self.dialect = self.ears.processor.tokenizer, self.ears.dialect
        self.tokens: list[int] = []
        self.text = ""
        """The words, but for what was written of a call."""
        self.calling = self.stopped = False
        self.finish: Finish = "stop"
        self.cached = self.held.keep(self.slots)
        most = self.held.most
        self.room = (
            self.options.max_new_tokens if most is None else min(self.options.max_new_tokens, most - len(self.slots))
        )
        self.binding = self.constraint if not self.callable else None
        self.generator = torch.Generator(self.ears.model.device)
        if self.options.seed is not None:
            self.generator.manual_seed(self.options.seed)
        else:
            self.generator.seed()

    def steps(self) -> Generator[str | Ask, int, None]:
        if self.must_call:
            self._begin_call("")
        shown = ""
        while (ask := self._ask()) is not None and self._took((yield ask)):
            self._look()
            sure = self._sure()
            if sure.startswith(shown) and len(sure) > len(shown):
                yield sure[len(shown) :]
                shown = sure
            if self.stopped:
                break
        else:
            self._look()  # what was forced at the end
        self.text = self.text.rstrip()
        if self.text.startswith(shown) and len(self.text) > len(shown):
            yield self.text[len(shown) :]

    @property
    def _closing(self) -> bool:
        return self.binding is not None and len(self.tokens) >= self.room * 3 // 4

    def _ask(self) -> Ask | None:
        """Write what is forced, and ask for the next token; None at the end."""
        bound = self.binding
        if bound is None:
            if len(self.tokens) < self.room:
                return Ask()
            self.finish = "length"
            return None
        if self.forcing or self._closing:
            forced = bound.forced()
            bound.take(forced)
            self.tokens += forced
        if bound.done or (self._closing and bound.accepting):
            return None
        if len(self.tokens) > self.room + CLOSED_WITHIN:
            raise UsageError(
                f"constrained decoding: no end after {len(self.tokens)} tokens; has the schema a finite value?"
            )
        return Ask(self._closing)

    def _took(self, token: int) -> bool:
        """Write ``token``, unless it is the end."""
        if token in self.ears.ends:
            return False
        self.tokens.append(token)
        if self.binding is not None:
            self.binding.take([token])
        return True

    def allowed(self, closing: bool) -> Tensor:
        """(V,): which tokens the constraint that binds lets come next."""
        assert self.binding is not None
        allowed = self.binding.allowed()
        return self.binding.closing(allowed) if closing else allowed

    @property
    def wanted(self) -> Wanted:
        """What the LLM must hold to say the next token."""
        return Wanted(self.held, [*self.slots, *self.tokens], self.heard)

    def pick(self, ask: Ask, logits: Tensor) -> int:
        """The next token, by the logits (V,) after what is ``wanted``."""
        if self.binding is not None:
            logits = logits.masked_fill(~self.allowed(ask.closing).to(logits.device), float("-inf"))
        if suppressed := getattr(self.held.llm.generation_config, "suppress_tokens", None):
            logits = logits.index_fill(0, torch.tensor(suppressed, device=logits.device), float("-inf"))
        if self.options.temperature == 0:
            return int(logits.argmax())
        chances, order = (logits / max(self.options.temperature, COLD)).softmax(dim=-1).sort(descending=True)
        chances[1:][(chances.cumsum(dim=-1) - chances >= self.options.top_p)[1:]] = 0.0  # the first stays in any case
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])

    def _look(self) -> None:
        """Read what is written so far."""
        if self.calling:
            return
        if self.callable:
            raw = self.tokenizer.decode(self.tokens)
            if (at := self.dialect.triggered(raw)) is not None:
                self._begin_call(raw[:at])
                return
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True).lstrip()
        found = [at for stop in self.options.stops if (at := text.find(stop)) >= 0]
        self.text, self.stopped = text[: min(found, default=None)], bool(found)

    def _begin_call(self, before: str) -> None:
        """Keep the tokens of ``before``, the words before the call, and begin one as the LLM's family does."""
        decode = self.tokenizer.decode
        kept = next((n for n in range(len(self.tokens), 0, -1) if before.startswith(decode(self.tokens[:n]))), 0)
        rest = before[len(decode(self.tokens[:kept])) :]
        self.text = before.strip()
        self.tokens = [*self.tokens[:kept], *self.ears.processor.tokens(rest + self.dialect.begin)]
        self.binding, self.calling, self.finish = self.constraint, True, "tool_calls"

    def _sure(self) -> str:
        """The text up to where a stop or a call may be beginning, a character is not whole, or only space follows."""
        if self.calling or self.stopped:
            return self.text.rstrip()
        marks = [*self.options.stops, *([self.dialect.trigger] if self.callable else [])]
        longest = max((n for m in marks for n in range(1, len(m)) if self.text.endswith(m[:n])), default=0)
        return self.text[: len(self.text) - longest].rstrip("\ufffd").rstrip()


def writing(writer: Writer) -> Generator[str | Wanted, Tensor | None, None]:
    """The ``steps`` of a writer whose LLM is fed by others: text, and what is wanted for its next token, whose logits it is sent."""
    steps, token = writer.steps(), None
    while (item := step(steps, token)) is not None:
        token = None
        if isinstance(item, str):
            yield item
        else:
            logits = yield writer.wanted
            assert logits is not None
            token = writer.pick(item, logits)


def step(steps: Generator[str | Ask, int, None], token: int | None) -> str | Ask | None:
    """What comes next of ``steps``, which is sent the ``token`` that it asked for, if it did; None at the end."""
    try:
        return next(steps) if token is None else steps.send(token)
    except StopIteration:
        return None
