"""How tools are told and calls are read, family by family; and functions that hang, raise or get nonsense."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from steermoe import Toolbox
from steermoe.errors import UsageError
from steermoe.inference.tools import (
    FALLBACK,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    PLAIN,
    Dialect,
    ToolCall,
    check_tools,
    find_dialect,
    parse_calls,
    told,
)

TURN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
SHOWN = "{% if tools %}{{ tools | tojson }}{% endif %}"


def calls(inside: str) -> str:
    return "{% for c in m.tool_calls or [] %}" + inside + "{% endfor %}{% endfor %}"


# As the families' own templates write a call, in short.
TEMPLATES = {
    "hermes": (
        SHOWN
        + TURN
        + calls(
            '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
        ),
        HERMES,
    ),
    "llama3": (
        SHOWN + TURN + calls('{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'),
        LLAMA3,
    ),
    "mistral": (
        SHOWN
        + TURN
        + calls(
            '[TOOL_CALLS] [{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}]'
        ),
        MISTRAL,
    ),
    "mistral, new": (
        SHOWN + TURN + calls("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
        MISTRAL_ARGS,
    ),
    "plain": (
        SHOWN + TURN + calls('{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'),
        PLAIN,
    ),
    "passes over tools": (TURN + "{% endfor %}", FALLBACK),
    "shows tools, but no call": (SHOWN + TURN + "{% endfor %}", FALLBACK),
    "a format of its own": (
        SHOWN + TURN + calls("<function={{ c.function.name }}>{{ c.function.arguments }}"),
        FALLBACK,
    ),
    "refuses results": (
        "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no') }}{% endfor %}" + SHOWN,
        FALLBACK,
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_dialect_is_found_by_rendering(ears: Any, name: str) -> None:
    from copy import deepcopy

    template, wanted = TEMPLATES[name]
    tokenizer = deepcopy(ears.processor.tokenizer)
    tokenizer.chat_template = template
    assert find_dialect(tokenizer) == wanted


@pytest.mark.parametrize(
    ("dialect", "text", "words", "wanted"),
    [
        (HERMES, 'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "Sure.", [("f", {"a": 1})]),
        (HERMES, '<tool_call>{"name":"f","arguments":{}}</tool_call><tool_call>{"name":"g","arguments":{"s":"}"}}', "", [("f", {}), ("g", {"s": "}"})]),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"s": "}}</tool_call> <tool_call>{}"}}\n</tool_call>', "", [("f", {"s": "}}</tool_call> <tool_call>{}"})]),
        (HERMES, "<tool_call>\nf(1)\n</tool_call>", "<tool_call>\nf(1)\n</tool_call>", []),
        (HERMES, '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
        (LLAMA3, '{"name": "f", "parameters": {"a": [1, {"b": null}]}}', "", [("f", {"a": [1, {"b": None}]})]),
        (LLAMA3, '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": "y"}}', "", [("f", {}), ("g", {"x": "y"})]),
        (LLAMA3, "In words, {not} JSON.", "In words, {not} JSON.", []),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "call00000"}, {"name": "g", "arguments": "{}"}]', "", [("f", {"a": 1}), ("g", {})]),
        (MISTRAL_ARGS, 'Well.[TOOL_CALLS]f[ARGS]{"a": {"b": 1}}[TOOL_CALLS]g{"c": 2}', "Well.", [("f", {"a": {"b": 1}}), ("g", {"c": 2})]),
        (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"s": "[TOOL_CALLS]g{}"}', "", [("f", {"s": "[TOOL_CALLS]g{}"})]),
        (MISTRAL_ARGS, '[TOOL_CALLS]f{broken}[TOOL_CALLS]g{}', "", [("g", {})]),
        (PLAIN, '```json\n{"name": "f", "arguments": {"a": true}}\n```', "", [("f", {"a": True})]),
        (PLAIN, '[{"function": {"name": "f", "arguments": "{\\"a\\": 2}"}}]', "", [("f", {"a": 2})]),
        (PLAIN, '{"answer": 42}', '{"answer": 42}', []),
        (PLAIN, '{"name": "f", "arguments": "{broken"}', '{"name": "f", "arguments": "{broken"}', []),
        (PLAIN, '{"name": "f", "argu', '{"name": "f", "argu', []),
    ],
)  # fmt: skip
def test_calls_are_read(dialect: Dialect, text: str, words: str, wanted: list[Any]) -> None:
    assert parse_calls(text, dialect) == (words, wanted)


def test_a_template_that_knows_no_tools_is_told_in_words(ears: Any) -> None:
    tool = {"type": "function", "function": {"name": "act", "description": "d", "parameters": {"type": "object"}}}
    call = ToolCall("call00000", "act", {"a": "ü"})
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call.as_openai()]},
        {"role": "tool", "tool_call_id": "call00000", "content": "went"},
    ]
    plain, tools = told(FALLBACK, messages, [tool])
    assert tools is None and [m["role"] for m in plain] == ["system", "user", "assistant", "user"]
    rendered = ears.processor.tokenizer.decode(ears.processor.chat(plain, tools).ids)
    assert "Be brief.\nYou can call these functions:" in rendered and '"name": "act"' in rendered
    assert parse_calls(plain[2]["content"], FALLBACK) == ("", [("act", {"a": "ü"})])
    assert "went" in plain[3]["content"]
    native, tools = told(HERMES, messages, [tool])
    assert tools == [tool] and native[2]["tool_calls"][0]["function"]["arguments"] == {"a": "ü"}
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == '{"a": "ü"}'  # the caller's own are as they were
    assert told(FALLBACK, messages[1:2], [tool])[0][0]["role"] == "system"
    assert told(FALLBACK, messages, [])[0][0] == messages[0]


@pytest.mark.parametrize(
    "tools", [{}, ["f"], [{"type": "function", "function": {"name": ""}}], [{"function": {"name": "a"}}]]
)
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    with pytest.raises(UsageError):
        check_tools(tools)
    twice = {"type": "function", "function": {"name": "a"}}
    with pytest.raises(UsageError, match="a second tool named 'a'"):
        check_tools([twice, twice])


# The toolbox.


def box(seconds: float = 0.3) -> Toolbox:
    toolbox = Toolbox(seconds=seconds)

    @toolbox.register
    def order(drink: Literal["tea", "milk"], cups: Annotated[int, Field(ge=1, le=4)] = 1) -> dict[str, Any]:
        """Order a drink."""
        return {"drink": drink, "cups": cups}

    @toolbox.register
    def hang() -> None:
        time.sleep(60)

    @toolbox.register
    def fail() -> None:
        raise ValueError("no\nmilk")

    @toolbox.register
    def leave() -> None:
        raise SystemExit(3)

    @toolbox.register
    def flood() -> str:
        return "x" * 10_000

    return toolbox


def test_the_signature_is_the_schema() -> None:
    function = box().tools[0]["function"]
    assert function["name"] == "order" and function["description"] == "Order a drink."
    assert function["parameters"]["required"] == ["drink"] and not function["parameters"]["additionalProperties"]
    assert function["parameters"]["properties"]["cups"]["maximum"] == 4


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("order", {"drink": "tea", "cups": 2}, '{"drink":"tea","cups":2}'),
        ("order", {"drink": "oil"}, "error: order: drink: Input should be 'tea' or 'milk'"),
        ("order", {"drink": "tea", "cups": 9}, "error: order: cups: Input should be less than or equal to 4"),
        ("order", {}, "error: order: drink: Missing required argument"),
        ("order", {"drink": "tea", "self": 1}, "error: order: self: Unexpected keyword argument"),
        ("__import__", {"name": "os"}, "error: there is no function '__import__'"),
        ("tools", {}, "error: there is no function 'tools'"),
        ("fail", {}, "error: fail failed: ValueError: no milk"),
        ("leave", {}, "error: leave failed: SystemExit: 3"),
        ("hang", {}, "error: hang did not answer within 0.3 seconds"),
    ],
)
def test_every_call_ends_with_a_line(name: str, arguments: dict[str, Any], wanted: str) -> None:
    assert box().run(ToolCall("call00000", name, arguments)) == wanted


def test_a_long_result_is_cut_and_says_so() -> None:
    assert box().run(ToolCall("call00000", "flood", {})).endswith(" ... (cut: 10000 characters)")


def test_a_process_with_a_hanging_tool_ends() -> None:
    code = (
        "import time\nfrom steermoe import Toolbox\nfrom steermoe.inference.tools import ToolCall\n"
        "def hang():\n    while True: time.sleep(0.001)\n"
        "print(Toolbox(hang, seconds=0.1).run(ToolCall('call00000', 'hang', {})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "error: hang did not answer within 0.1 seconds\n"), done.stderr


def test_numbers_of_calls_are_json() -> None:
    ((_, arguments),) = parse_calls('<tool_call>{"name": "f", "arguments": {"a": 1e999, "b": [-1e999, 2.5]}}', HERMES)[
        1
    ]
    assert arguments == {"a": sys.float_info.max, "b": [-sys.float_info.max, 2.5]}
    assert parse_calls('<tool_call>{"name": "f", "arguments": {"a": NaN}}', HERMES)[1] == []


def test_what_cannot_be_registered_is_refused() -> None:
    toolbox = box()

    async def soon() -> str:
        return "done"

    def one_by_one() -> Any:
        yield "done"

    for function in (soon, one_by_one):
        with pytest.raises(UsageError, match="is async or a generator"):
            toolbox.register(function)
    with pytest.raises(UsageError, match="has no name of its own"):
        toolbox.register(functools.partial(print, "a"))
    with pytest.raises(UsageError, match="'order': is registered already"):
        toolbox.register(next(f for f, _ in toolbox._functions.values()))

    def odd(thing: Ellipsis.__class__) -> None: ...  # type: ignore[name-defined]

    def many(*things: int) -> None: ...

    for function in (odd, many, lambda x: x):
        with pytest.raises(UsageError, match="tool "):
            toolbox.register(function)
    assert json.dumps(toolbox.tools)
