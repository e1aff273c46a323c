"""Python functions that an LLM's calls may run: those that were registered, and nothing else.

A function's signature is its schema: pydantic makes the JSON schema that is told to the LLM, and validates what comes
back before the function sees it. Every call ends within its time limit with a message for the conversation, whatever
the function does. It runs in a daemon thread: Python cannot kill one, so a function that hangs goes on in the
background, but holds up neither the conversation nor the end of the process.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import UsageError
from .tools import NAME, ToolCall, check_tools

F = TypeVar("F", bound=Callable[..., Any])
SECONDS = 10.0
LONGEST = 4000  # characters of a result that are told to the LLM


class Toolbox:
    """Registered functions: ``tools`` for the LLM, ``run`` for its calls.

    >>> box = Toolbox()
    >>> @box.register
    ... def set_timer(minutes: Annotated[int, Field(ge=1, le=120)], label: str = "timer") -> str:
    ...     "Set a kitchen timer."
    ...     return f"{label}: {minutes} minutes"
    >>> Conversation(ears, tools=box).run("Wake me in ten minutes.")

    ``seconds`` is the time limit of a call.
    """

    def __init__(self, *functions: Callable[..., Any], seconds: float = SECONDS) -> None:
        self.seconds, self._functions = seconds, dict[str, tuple[Callable[..., Any], dict[str, Any]]]()
        for function in functions:
            self.register(function)

    def register(self, function: F) -> F:
        """Let the LLM call ``function``; also as a decorator. Its docstring tells what it does.

        Raises UsageError for a second one of that name, or a parameter whose type has no JSON schema.
        """
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        name = getattr(function, "__name__", None)
        if name is None:
            raise UsageError(f"tool {function!r}: has no name of its own; write a function (def) around it")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise UsageError(
                f"tool {name!r}: is async or a generator; register a plain function that returns its result"
            )
        if not NAME.fullmatch(name):
            raise UsageError(f"tool {name!r}: give it a plain name")
        if name in self._functions:
            raise UsageError(f"tool {name!r}: is registered already")
        try:
            schema = TypeAdapter(cast(Any, function)).json_schema()
        except (PydanticUserError, TypeError, NameError) as error:
            raise UsageError(f"tool {name!r}: its signature has no JSON schema: {str(error).splitlines()[0]}") from None
        if schema.get("type") != "object":
            raise UsageError(f"tool {name!r}: its parameters need names (no *args, no positional-only ones)")
        self._functions[name] = (function, schema)
        return function

    @property
    def tools(self) -> list[dict[str, Any]]:
        """As the OpenAI API takes them."""
        return [
            {"type": "function", "function": {"name": name, "description": inspect.getdoc(function) or "", "parameters": schema}}
            for name, (function, schema) in self._functions.items()
        ]  # fmt: skip

    def run(self, call: ToolCall) -> str:
        """What the conversation is told: the function's result (text, or JSON of it), or one line on what went wrong.
        Never raises for what the function or the call's arguments do."""
        from pydantic import ValidationError, validate_call
        from pydantic_core import to_json

        if call.name not in self._functions:
            return f"error: there is no function {call.name!r}"
        function, _ = self._functions[call.name]
        outcome: list[str] = []

        @functools.wraps(function)  # its signature, which is what pydantic looks at
        def validated(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        try:
            args, kwargs = validate_call(validated)(**call.arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "arguments"
            return f"error: {call.name}: {where}: {first['msg']}"

        # Not called by pydantic: at the end of the process a thread that hangs within its Rust would abort all.
        def work() -> None:
            try:
                result = function(*args, **kwargs)
                outcome.append(result if isinstance(result, str) else to_json(result, fallback=str).decode())
            except BaseException as error:  # also SystemExit: a tool does not end the program
                told = " ".join(str(error).split())[:200]
                outcome.append(f"error: {call.name} failed: {type(error).__name__}{': ' + told if told else ''}")

        thread = threading.Thread(target=work, name=f"tool {call.name}", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not outcome:
            return f"error: {call.name} did not answer within {self.seconds:g} seconds"
        text = outcome[0]
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... (cut: {len(text)} characters)"


def load_tools(path: Path) -> Toolbox | list[dict[str, Any]]:
    """``.json``: tools as the OpenAI API has them, for the LLM to call and nobody to run. ``.py``: the ``Toolbox`` that the
    file makes, whose functions run; the file itself is run, too. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file of tools")
    if path.suffix == ".json":
        try:
            return check_tools(json.loads(path.read_text(encoding="utf-8")), str(path))
        except ValueError as error:
            raise UsageError(f"{path}: not JSON ({error})") from None
    if path.suffix != ".py":
        raise UsageError(f"{path}: tools are a .json of schemas, or a .py that makes a Toolbox")
    spec = importlib.util.spec_from_file_location(f"steermoe_tools_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{path}: fails with {type(error).__name__}: {told}") from None
    boxes = [value for value in vars(module).values() if isinstance(value, Toolbox)]
    if len(boxes) != 1:
        raise UsageError(f"{path}: makes {len(boxes)} Toolboxes; one is needed, with the functions registered in it")
    return boxes[0]
