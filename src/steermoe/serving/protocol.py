"""The OpenAI API as far as it is spoken here: what requests may hold, and the shapes of answers.

What would change an answer and is not done here is refused; what would not (``user``, ``store``, ``language``) is passed over.
No part of a request names a file or an address that the server would read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..inference.chat import Answer
from ..inference.subtitles import subtitles, timed
from ..inference.transcripts import Piece
from .engine import Refusal

KINDS = {401: "authentication_error", 429: "rate_limit_error"}
Zero = Annotated[float, Field(ge=0, le=0)]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TranscriptionRequest(BaseModel):
    """The fields of the form, beside ``file``."""

    model: str
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    stream: bool = False
    language: str | None = None
    temperature: Zero = Field(0.0, description="transcripts are greedy")
    timestamp_granularities: list[Literal["segment", "word"]] = Field([], alias="timestamp_granularities[]")
    include: list[str] = Field([], alias="include[]", max_length=0)


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class InputAudio(Closed):
    data: str = Field(description="base64 of an audio file")
    format: str | None = None


class AudioPart(Closed):
    type: Literal["input_audio"]
    input_audio: InputAudio


def _parts(content: Any) -> Any:
    return [] if content is None else [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]
Content = Annotated[list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None)]


class Called(BaseModel):
    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError("a JSON object is needed, as a string")
        return text


class Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = Field(default_factory=list)
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class FunctionName(BaseModel):
    name: str


class ToolChoice(BaseModel):
    type: Literal["function"]
    function: FunctionName


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0, greedy, if left out")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = Field(None, description="the older form of tools: not spoken here")
    function_call: None = Field(None, description="the older form of tool_choice: not spoken here")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, body: Any) -> Any:
        if isinstance(body, bytes):
            raise ValueError("JSON is needed, sent as Content-Type: application/json")
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text: a ValueError
        return body

    def options(self) -> dict[str, Any]:
        """What ``inference.writer.Options`` takes, as far as it was given."""
        choice = self.tool_choice.model_dump() if isinstance(self.tool_choice, ToolChoice) else self.tool_choice
        given = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "tool_choice": choice,
            **{name: getattr(self, name) for name in ("temperature", "top_p", "seed", "stop", "response_format")},
        }
        return {name: value for name, value in given.items() if value is not None}

    def plain(self) -> list[dict[str, Any]]:
        """The messages as ``Conversation`` takes them; a text is one string, a result has its function's name."""
        names = {call.id: call.function.name for message in self.messages for call in message.tool_calls or ()}
        told: list[dict[str, Any]] = []
        for message in self.messages:
            content: Any = [part.model_dump() for part in message.content]
            if all(part["type"] == "text" for part in content):
                content = "\n".join(part["text"] for part in content)
            one = {"role": "system" if message.role == "developer" else message.role, "content": content}
            if message.tool_calls:
                one["tool_calls"] = [call.model_dump() for call in message.tool_calls]
            if message.role == "tool":
                one |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id or "", "function")}
            told.append(one)
        return told


def refused(error: Refusal) -> dict[str, Any]:
    kind = KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    said = str(error).encode(errors="replace").decode()
    return {"error": {"message": said, "type": kind, "param": error.param, "code": error.code}}


def invalid(errors: Sequence[Any]) -> Refusal:
    """The first complaint of pydantic's. What was sent is not repeated."""
    if errors[0]["type"] == "json_invalid":
        return Refusal(f"the body is no JSON from character {errors[0]['loc'][-1]} on", 400, "invalid_value")
    where = [str(name).encode(errors="replace").decode() for name in errors[0]["loc"] if name != "body"]
    said = str(errors[0]["msg"]).removeprefix("Value error, ")
    return Refusal(f"{'.'.join(where) or 'body'}: {said}", 400, "invalid_value", ".".join(where) or None)


def checked(fields: dict[str, Any]) -> TranscriptionRequest:
    try:
        return TranscriptionRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_context=False)) from None


def transcription(asked: TranscriptionRequest, pieces: Sequence[Piece], seconds: float) -> Any:
    """A text for ``text``, ``srt`` and ``vtt``, else what becomes JSON."""
    text = " ".join(piece.text for piece in pieces if piece.text)
    match asked.response_format:
        case "json":
            return {"text": text, "usage": {"type": "duration", "seconds": round(seconds, 3)}}
        case "text":
            return f"{text}\n"
        case "verbose_json":
            duration, wanted = round(seconds, 3), asked.timestamp_granularities or ["segment"]
            told = {"task": "transcribe", "language": asked.language or "unknown", "duration": duration, "text": text}
            if "segment" in wanted:
                segments = timed(segment for piece in pieces for segment in piece.segments)
                told["segments"] = [{"id": i, **segment} for i, segment in enumerate(segments)]
            if "word" in wanted:
                told["words"] = timed((word for piece in pieces for word in piece.words), "word")
            return told
    return "\n".join(subtitles(pieces, asked.response_format))


def usage(answer: Answer) -> dict[str, Any]:
    used = answer.usage
    total = used.prompt_tokens + used.completion_tokens
    counts = {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": used.cached_tokens}}


def completion(head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    choice = {"index": 0, "message": answer.message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage(answer)}


def chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def last_chunks(head: dict[str, Any], answer: Answer, with_usage: bool) -> list[dict[str, Any]]:
    """What follows the text: calls, why it ended, and if asked for the count of tokens."""
    calls = [{"index": i, **call.as_openai()} for i, call in enumerate(answer.tool_calls)]
    chunks = [chunk(head, {"tool_calls": calls})] if calls else []
    chunks.append(chunk(head, {}, answer.finish_reason))
    if with_usage:
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)})
    return chunks
