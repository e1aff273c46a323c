"""Functions that an LLM may call: how they are told to it, and how its calls are read.

Most chat templates take tools, each in its family's own format. Which format that is, and whether the template shows
tools, calls and results at all, is found out by rendering a small conversation, never by a model's name. To an LLM
whose template passes over tools, such as SmolLM2's, they are told by lines of the system prompt, in the format that
most others use (Hermes): that is the fallback, and ``Dialect.native`` says so.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError

Message = dict[str, Any]
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NAMED = re.compile(r"([\w-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\{)")
SPACE = re.compile(r"[\s;,]*")
LINES = """You can call these functions:
{tools}
To call one, answer with nothing but
<tool_call>
{{"name": "its name", "arguments": {{its arguments}}}}
</tool_call>
Without need for a function, answer in words."""


def _finite(number: str) -> float:
    """1e999 is the largest number there is: infinity is no JSON, and neither is NaN."""
    value = float(number)
    if math.isinf(value) and number.lstrip("-")[0].isdigit():
        return math.copysign(sys.float_info.max, value)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no JSON")
    return value


DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
RESULT = "The result: {}\nTell me so in words."  # tags of its own a small LLM would only repeat


@dataclass(frozen=True)
class ToolCall:
    """One call: ``id`` is unique within its conversation; ``arguments`` by name."""

    id: str
    name: str
    arguments: dict[str, Any]

    def as_openai(self) -> dict[str, Any]:
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    def __str__(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, ensure_ascii=False)})"


@dataclass(frozen=True)
class Dialect:
    """How a family writes a call: ``begin``, then per call ``{"name": ..., KEY: {...}}`` (or NAME ``between`` {...}), then
    ``end``. ``trigger`` begins a call in free text; where it is ``{`` only at the start of an answer."""

    name: str
    begin: str
    end: str
    trigger: str
    key: str = "arguments"
    between: str | None = None
    native: bool = True  # the template itself shows tools, calls and results

    def around(self, tool: str) -> tuple[str, str]:
        """What stands before and after the arguments in a call of ``tool``."""
        if self.between is not None:
            return f"{tool}{self.between}", ""
        return f'{{"name": {json.dumps(tool)}, "{self.key}": ', "}"

    def triggered(self, text: str) -> int | None:
        """Where in ``text`` a call begins."""
        if self.trigger == "{":
            return 0 if text.lstrip().startswith(("{", "<|python_tag|>")) else None
        at = text.find(self.trigger)
        return at if at >= 0 else None


HERMES = Dialect("hermes", "<tool_call>\n", "\n</tool_call>", "<tool_call>")
LLAMA3 = Dialect("llama3", "", "", "{", key="parameters")
MISTRAL = Dialect("mistral", "[TOOL_CALLS] [", "]", "[TOOL_CALLS]")
MISTRAL_ARGS = Dialect("mistral-args", "[TOOL_CALLS]", "", "[TOOL_CALLS]", between="[ARGS]")
PLAIN = Dialect("json", "", "", "{")
FALLBACK = replace(HERMES, native=False)


def find_dialect(tokenizer: Any) -> Dialect:
    """The dialect of a tokenizer's chat template, by rendering; FALLBACK where it does not show all that is needed."""
    asked: list[Message] = [{"role": "user", "content": "ask"}]
    function = {"name": "probe_name", "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = {"name": "probe_name", "arguments": {"probe_key": "probe_value"}}
    called = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call00000", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call00000", "name": "probe_name", "content": "probe_result"},
    ]

    def render(messages: list[Message], tools: list[Any] | None = None) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
        except Exception:  # templates refuse in many ways, and one that refuses does not take tools
            return ""

    shown, told = render(asked, [{"type": "function", "function": function}]), render(called)
    if "probe_name" not in shown or "probe_result" not in told:
        return FALLBACK
    written = told[: told.find("probe_result")]
    if "[TOOL_CALLS]" in written:
        return MISTRAL_ARGS if "[ARGS]" in written else MISTRAL
    spelt = re.search(r'\{\s*"name":\s*"probe_name",\s*"(arguments|parameters)":\s*\{"probe_key"', written)
    if spelt is None:  # a format of its own
        return FALLBACK
    if "<tool_call>" in written:
        return HERMES
    return LLAMA3 if spelt[1] == "parameters" else PLAIN


def check_tools(tools: Any, where: str = "tools") -> list[dict[str, Any]]:
    """Tools as the OpenAI API has them. Raises UsageError that names what is wrong, and where."""
    if not isinstance(tools, list):
        raise UsageError(f"{where}: a list of tools is needed, got {type(tools).__name__}")
    names: set[str] = set()
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise UsageError(f'{where}[{i}]: {{"type": "function", "function": {{...}}}} is needed')
        name = function.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(f"{where}[{i}]: name {name!r}: use 1 to 64 letters, digits, _ or -")
        if name in names:
            raise UsageError(f"{where}[{i}]: a second tool named {name!r}")
        if not isinstance(function.get("parameters", {}), dict):
            raise UsageError(f"{where}[{i}]: parameters of {name!r}: a JSON schema (an object) is needed")
        names.add(name)
    return tools


def told(
    dialect: Dialect, messages: Sequence[Message], tools: list[Any] | None
) -> tuple[list[Message], list[Any] | None]:
    """Messages and tools as this LLM's chat template takes them."""
    if dialect.native:
        return [_with_objects(message) for message in messages], tools or None
    plain = [_in_words(message) for message in messages]
    if tools:
        lines = LINES.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
        first = plain[0] if plain and plain[0].get("role") == "system" else None
        if first is not None:
            plain = plain[1:]
            parts = (
                first["content"] if isinstance(first["content"], list) else [{"type": "text", "text": first["content"]}]
            )
            plain.insert(0, {**first, "content": [*parts, {"type": "text", "text": lines}]})
        else:
            plain.insert(0, {"role": "system", "content": lines})
    return plain, None


def _with_objects(message: Message) -> Message:
    """The API spells arguments as a string of JSON, templates want the object."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**c, "function": {**c["function"], "arguments": _object(c["function"]["arguments"])}}
        for c in message["tool_calls"]
    ]
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def _in_words(message: Message) -> Message:
    """Calls and results as text, for a template that knows neither."""
    if message.get("role") == "tool":
        return {"role": "user", "content": RESULT.format(message["content"])}
    if not message.get("tool_calls"):
        return message
    said = [message["content"]] if message.get("content") else []
    for call in message["tool_calls"]:
        before, after = FALLBACK.around(call["function"]["name"])
        arguments = json.dumps(_object(call["function"]["arguments"]), ensure_ascii=False)
        said.append(f"{FALLBACK.begin}{before}{arguments}{after}{FALLBACK.end}")
    return {"role": "assistant", "content": "\n".join(said)}


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return DECODER.decode(arguments)
    except ValueError:
        raise UsageError(f"the arguments of a call are no JSON: {arguments[:80]!r}") from None


def parse_calls(text: str, dialect: Dialect) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """What an LLM wrote -> the words before its calls, and the calls as (name, arguments), in order.

    What does not parse as a call is no call: then all of ``text`` is words. Marks of the dialect inside a string of the arguments
    are the string's.
    """
    at = dialect.triggered(text) if dialect is not PLAIN else 0
    if at is None:
        return text, []
    if dialect.name == "hermes":
        calls = list(_tagged(text, "<tool_call>", at))
    elif dialect.name.startswith("mistral"):
        rest = text[at:].removeprefix("[TOOL_CALLS]").strip()
        calls = list(_calls(_values(rest)[0])) if rest.startswith(("[", "{")) else list(_named(rest))
    else:
        fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.S)
        calls = list(_calls(_values((fenced[1] if fenced else text).strip().removeprefix("<|python_tag|>"))[0]))
    return (text[:at].strip(), calls) if calls else (text, [])


Calls = Iterator[tuple[str, dict[str, Any]]]


def _values(text: str, at: int = 0) -> tuple[list[Any], int]:
    """JSON values that follow each other from ``at`` on, ``;`` or white space between, and where they end."""
    values: list[Any] = []
    while True:
        start = SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        try:
            value, at = DECODER.raw_decode(text, start)
        except ValueError:
            return values, start
        values.append(value)


def _calls(values: list[Any]) -> Calls:
    """Those of JSON values that are calls, or lists of calls."""
    for item in (item for value in values for item in (value if isinstance(value, list) else [value])):
        if isinstance(item, dict):
            item = item["function"] if isinstance(item.get("function"), dict) else item
            arguments = item.get("arguments", item.get("parameters"))
            try:
                arguments = _object(arguments)
            except UsageError:
                continue
            if isinstance(item.get("name"), str) and isinstance(arguments, dict):
                yield item["name"], arguments


def _tagged(text: str, tag: str, at: int) -> Calls:
    """The calls behind every ``tag`` from ``at`` on."""
    while (at := text.find(tag, at)) >= 0:
        values, at = _values(text, at + len(tag))
        yield from _calls(values)


def _named(text: str) -> Calls:
    """``name[ARGS]{...}``, also where the special token between was lost."""
    at = 0
    while (begun := NAMED.search(text, at)) is not None:
        try:
            arguments, at = DECODER.raw_decode(text, begun.end())
        except ValueError:
            at = begun.end()
        else:
            yield begun[1], arguments
