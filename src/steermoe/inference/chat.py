"""A conversation with an LLM that hears: turns, audio at any place, functions, and text as it is written.

The key/value cache stays between turns. Every prompt is rendered anew from the messages, and only what the last one did
not begin with is fed (held.py), so that an edited history is simply another prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..errors import UsageError
from ..spelling import control
from .grammar import Constraint, call_grammar, json_grammar, schema_of
from .held import Held, Slot, Wanted, feed, too_long
from .messages import decoded, named, result_text
from .toolbox import Toolbox
from .tools import Message, ToolCall, check_tools, parse_calls, told
from .writer import Finish, Options, Writer, writing

if TYPE_CHECKING:
    from ..processing import Prompt
    from .ears import Ears

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt (audio tokens among them), those of it that lay in the cache, and those written."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Answer:
    """What the LLM said. ``finish_reason`` is ``stop``, ``length`` or ``tool_calls``, as in the OpenAI API."""

    text: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: Finish = "stop"
    usage: Usage = Usage(0, 0, 0)

    @property
    def message(self) -> Message:
        """As a message of the conversation, in the OpenAI API's form."""
        calls = {"tool_calls": [call.as_openai() for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": "assistant", "content": self.text or (None if calls else ""), **calls}

    def __str__(self) -> str:
        return "\n".join([*([self.text] if self.text else []), *map(str, self.tool_calls)])


class Reply(Iterator[str]):
    """Pieces of text, as they are written; ``answer`` is there once all were taken. Of a call no text is given out.

    Several are written together by a ``step`` of each, all that they want fed at once (``held.feed``).
    """

    def __init__(self, writing: Generator[str | Wanted, Tensor | None, Answer]) -> None:
        self._writing = writing
        self.answer: Answer | None = None

    def step(self, logits: Tensor | None = None) -> str | Wanted | None:
        """The next piece, or what is wanted for it, whose logits (V,) the next step takes; None at the end."""
        try:
            return self._writing.send(logits)
        except StopIteration as done:
            self.answer = self.answer or done.value
            return None

    def __next__(self) -> str:
        item = self.step()
        while isinstance(item, Wanted):
            item = self.step(*feed([item]))
        if item is None:
            raise StopIteration
        return item


def together(replies: Sequence[Reply]) -> list[Answer | UsageError]:
    """The answers of several conversations with one LLM, each of its passes a token of all; or what stands in the way of one."""
    answers: list[Answer | UsageError | None] = [None] * len(replies)

    def go_on(i: int, logits: Tensor | None = None) -> Wanted | None:
        try:
            item = replies[i].step(logits)
            while isinstance(item, str):
                item = replies[i].step()
        except UsageError as error:
            answers[i], item = error, None
        else:
            answers[i] = replies[i].answer
        return item

    wanted = {i: go_on(i) for i in range(len(replies))}
    while left := {i: want for i, want in wanted.items() if want is not None}:
        wanted = {i: go_on(i, row) for i, row in zip(left, feed(list(left.values())), strict=True)}
    return [answer for answer in answers if answer is not None]


def further(beginning: Generator[None, None, T]) -> T | None:
    """What comes of it, if that is there now (``Conversation.beginning``)."""
    try:
        next(beginning)
    except StopIteration as done:
        made: T = done.value
        return made
    return None


class Conversation:
    """Turns between a user and an LLM that hears, one conversation, batch of one.

    >>> talk = Conversation(ears, [{"role": "system", "content": "Be brief."}])
    >>> talk.answer([{"type": "audio", "path": "question.wav"}]).text
    >>> for piece in talk.stream("And why?"):
    ...     print(piece, end="", flush=True)

    ``messages`` are the OpenAI API's, and are yours to edit between answers; what the cache holds of them is kept as far
    as it fits. Content is a text or a list of parts: ``{"type": "text", "text"}``, ``{"type": "audio", "path" | "audio" |
    "bytes"}`` (``sampling_rate`` beside an array) or ``{"type": "input_audio", "input_audio": {"data": BASE64}}``. Each
    audio is decoded and heard once. ``tools`` are the API's, too, or a ``Toolbox`` of Python functions, which ``run`` runs;
    a call that is written is always one of them, its arguments valid against their schema. ``template`` holds further
    variables of the chat template, such as ``enable_thinking``.

    A server answers a request by ``Conversation(ears, messages, tools).stream(None, **options)``: what is wrong with the
    request is raised there (UsageError, AudioError), before the first piece. The ``Reply`` then gives the pieces of text
    and at last ``answer``: ``text``, ``tool_calls``, ``finish_reason``, ``usage`` and ``message``. A conversation that is
    kept, given the next request's messages, feeds only what is new.
    """

    def __init__(
        self,
        ears: Ears,
        messages: Sequence[Message] = (),
        tools: Toolbox | list[dict[str, Any]] | None = None,
        template: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(messages, str | dict) or not all(isinstance(message, dict) for message in messages):
            raise UsageError('messages: a list of {"role": ..., "content": ...} is needed')
        self.ears, self.messages, self.template = ears, list(messages), template or {}
        self.toolbox = tools if isinstance(tools, Toolbox) else None
        self.tools = check_tools(tools.tools if isinstance(tools, Toolbox) else tools or [])
        self._held = Held(ears.model.llm)
        self._heard: dict[str, Tensor] = {}  # audio tokens (S, D_llm) by the audio's digest

    def stream(self, content: Any = None, **options: Any) -> Reply:
        """The answer to the messages and, if given, to ``content``, the user's next. See ``Options``.

        Its message is added when all of it was taken. Raises UsageError and AudioError at once, and then leaves the
        messages as they were.
        """
        return self.reply(self.begin(content, **options))

    def reply(self, writer: Writer) -> Reply:
        """What was begun, piece by piece."""
        return Reply(self._write(writer))

    def begin(self, content: Any = None, **options: Any) -> Writer:
        """As ``stream``, nothing written yet: for an LLM that is elsewhere. See ``Writer.steps`` and ``end``."""
        beginning = self.beginning(content, **options)
        while (writer := further(beginning)) is None:
            pass
        return writer

    def beginning(self, content: Any = None, **options: Any) -> Generator[None, None, Writer]:
        """As ``begin``, a few windows of audio heard each time it is asked to go on: for who has others to hear, too."""
        before = self.messages
        try:
            chosen = Options(**options)
        except TypeError as error:
            raise UsageError(f"chat: {str(error).split(') ')[-1].removeprefix('Options.__init__() ')}") from None
        added = [] if content is None else [{"role": "user", "content": content}]
        if not before and not added:
            raise UsageError("messages: there is none to answer")
        try:
            self.messages = [decoded(message) for message in [*before, *added]]
            return (yield from self._writer(chosen))
        except BaseException:
            self.messages = before
            raise

    def answer(self, content: Any = None, **options: Any) -> Answer:
        """As ``stream``, the whole answer at once."""
        reply = self.stream(content, **options)
        for _ in reply:
            pass
        assert reply.answer is not None
        return reply.answer

    def run(self, content: Any = None, rounds: int = 4, **options: Any) -> Answer:
        """As ``answer``; calls are run by the Toolbox and their results fed back, until the LLM answers in words.

        After ``rounds`` of calls it is shown no tools, and so has to. A tool that was required is so the first time only.
        """
        if self.toolbox is None:
            raise UsageError("run() runs Python functions: give Conversation a Toolbox of them as tools")
        answer = self.answer(content, **options)
        for left in reversed(range(rounds)):
            if not answer.tool_calls:
                break
            for call in answer.tool_calls:
                result = {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": self.toolbox.run(call)}
                self.messages.append(result)
            answer = self.answer(**{**options, "tool_choice": "auto" if left else "none"})
        return answer

    def exchange(self) -> list[Message]:
        """The messages, ready for JSON: of an audio its ``name``, if it had one, and its length."""
        return [{**message, "content": named(message.get("content"))} for message in self.messages]

    def _writer(self, options: Options) -> Generator[None, None, Writer]:
        """Render, hear and compile: all that can be refused is refused here."""
        ears, schema = self.ears, schema_of(options.response_format)
        callable, must_call = self._callable(options.tool_choice)
        if callable and schema is not None:
            raise UsageError(
                "response_format and tools: one answer is either; choose tool_choice='none', or no response_format"
            )
        constraint = None
        if callable:
            constraint = Constraint(ears.vocabulary, call_grammar(ears.vocabulary, ears.dialect, callable))
        elif schema is not None:
            constraint = Constraint(ears.vocabulary, json_grammar(ears.vocabulary, schema))
        offered = self.tools if options.tool_choice != "none" else []
        messages, tools = told(ears.dialect, [self._safe(message) for message in self.messages], offered)
        prompt = ears.processor.chat(messages, tools, **self.template)
        slots = yield from self._slots(prompt)
        return Writer(ears, self._held, self._heard, slots, options, constraint, bool(callable), must_call)

    def _callable(self, choice: str | dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """The tools that may be called, and whether one must be."""
        name = (choice.get("function") or {}).get("name") if isinstance(choice, dict) else choice
        if name == "none" or (name == "auto" and not isinstance(choice, dict)):
            return (self.tools if name == "auto" else []), False
        callable = [tool for tool in self.tools if name in ("required", tool["function"]["name"])]
        if not callable:
            names = ", ".join(tool["function"]["name"] for tool in self.tools) or "none were given"
            raise UsageError(f"tool_choice={choice!r}: there is no such tool; the tools: {names}")
        return callable, True

    def _slots(self, prompt: Prompt) -> Generator[None, None, list[Slot]]:
        """Hear what is new in the prompt, and put every audio's tokens in its place."""
        digests = [hashlib.sha256(audio.tobytes()).hexdigest() for audio in prompt.audios]
        new = {d: audio for d, audio in zip(digests, prompt.audios, strict=True) if d not in self._heard}
        tokens, room = len(prompt.ids), self._held.most
        hearing = self.ears.audio_tokens(list(new.values()))
        while True:
            try:
                tokens += next(hearing)
            except StopIteration as done:
                heard = self._heard | dict(zip(new, done.value, strict=True))
                break
            if room is not None and tokens > room:  # the rest need not be heard
                raise too_long(tokens, room, "more than ")
            yield
        self._heard = {digest: heard[digest] for digest in digests}
        queue, slots = iter(digests), list[Slot]()
        for token in prompt.ids:
            if token == self.ears.model.audio_token_id:
                digest = next(queue)
                slots += [(digest, i) for i in range(len(heard[digest]))]
            else:
                slots.append(token)
        return slots

    def _safe(self, message: Message) -> Message:
        """What a tool returned must not hold the tokens that end a turn and begin another."""
        if message.get("role") != "tool":
            return message
        content = result_text(message.get("content"))
        marks = control(self.ears.processor.tokenizer)
        while any(mark in content for mark in marks):  # what is cut out may leave another
            for mark in marks:
                content = content.replace(mark, "")
        return {**message, "content": content}

    def _write(self, writer: Writer) -> Generator[str | Wanted, Tensor | None, Answer]:
        yield from writing(writer)
        return self.end(writer)

    def end(self, writer: Writer) -> Answer:
        """The answer that was written; its message is added."""
        calls: list[ToolCall] = []
        if writer.calling:
            written = self.ears.processor.tokenizer.decode(writer.tokens) + self.ears.dialect.end
            for name, arguments in parse_calls(written, self.ears.dialect)[1]:
                # Of all that came before, so that no other call has it; nine letters and digits: Mistral's templates take nothing else.
                before = repr((writer.slots, writer.tokens, len(calls)))
                calls.append(ToolCall(hashlib.sha256(before.encode()).hexdigest()[:9], name, arguments))
        usage = Usage(len(writer.slots), writer.cached, len(writer.tokens))
        answer = Answer(writer.text, calls, writer.finish, usage)
        self.messages.append(answer.message)
        return answer
