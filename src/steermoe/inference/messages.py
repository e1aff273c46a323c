"""Messages of a conversation: their audio as samples, their form for JSON and for a terminal."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..audio import RATE, decode
from ..errors import AudioError, UsageError
from .tools import Message

ROLES = ("system", "developer", "user", "assistant", "tool")


def decoded(message: Message) -> Message:
    """The message with its audio as samples, so that it is read once, and stays what it was."""
    content, role = message.get("content"), message.get("role")
    if role not in ROLES:
        raise UsageError(f"messages: role {role!r} is none of {', '.join(ROLES)}")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return message
    if not isinstance(content, list):
        raise UsageError(f"messages: the content of a message is a text or a list of parts, not {content!r}")
    return {**message, "content": [_part(part) for part in content]}


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_audio":
        data = part.get("input_audio")
        try:
            source: Any = base64.b64decode(data["data"], validate=True)
        except (TypeError, KeyError, ValueError):
            raise AudioError('an input_audio part needs {"data": BASE64} of an audio file') from None
    elif kind == "audio":
        source = next((part[key] for key in ("path", "audio", "bytes") if key in part), None)
        if source is None or (isinstance(source, np.ndarray) and part.get("sampling_rate") == RATE):
            return part  # the processor says what is wrong, if anything is
    else:
        return part
    samples = decode(source, sampling_rate=part.get("sampling_rate"))
    named = {"name": str(part["path"])} if "path" in part else {}
    return {"type": "audio", "audio": samples, "sampling_rate": RATE, **named}


def result_text(content: Any) -> str:
    """What a tool returned, a text or a list of text parts. Raises UsageError for anything else."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("a tool's result is a text, or a list of text parts: give audio in a user's message")
    return "\n".join(map(str, texts))


def named(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("audio"), np.ndarray):
            part = {"type": "audio", "name": part.get("name"), "seconds": round(len(part["audio"]) / RATE, 2)}
        parts.append(part)
    return parts


def in_lines(message: Message) -> str:
    """A message of an ``exchange`` for a terminal."""
    role, content = message["role"], message.get("content")
    if role == "tool":
        return f"{message['name']}: {content}"
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    said = []
    for part in parts:
        heard = part["type"] == "audio"
        said.append(f"[{part['name'] or 'audio'}, {part['seconds']} s]" if heard else str(part["text"] or ""))
    for call in message.get("tool_calls") or ():
        said.append(f"calls {call['function']['name']}({call['function']['arguments']})")
    return f"{role}: {' '.join(filter(None, said))}"
