"""Functions that a spoken order runs: the tools of tools.json, registered.

    steermoe chat --audio order.ogg --tools examples/functions.py --tool-choice required
    python examples/functions.py order.ogg

Signatures are the schemas: types, Literal and Field bounds are told to the LLM, and checked before a function runs.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field

from steermoe import Conversation, Toolbox, load

toolbox = Toolbox(seconds=5)
lights: dict[str, bool] = {}


@toolbox.register
def order_coffee(
    drink: Literal["americano", "cappuccino", "coffee", "espresso", "latte", "mocha"],
    size: Literal["small", "medium", "large"] = "medium",
    shots: Annotated[int, Field(ge=1, le=3)] = 1,
) -> str:
    """Order a coffee drink."""
    return f"Ordered: a {size} {drink}, shots: {shots}. It will be ready in five minutes."


@toolbox.register
def set_light(room: Literal["kitchen", "bedroom", "living room", "bathroom"], on: bool) -> dict[str, bool]:
    """Switch the light of a room on or off."""
    lights[room] = on
    return lights


@toolbox.register
def set_timer(
    minutes: Annotated[int, Field(ge=1, le=180)], label: Annotated[str, Field(max_length=40)] = "timer"
) -> str:
    """Set a timer."""
    return f"The {label} will ring in {minutes} minutes."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/functions.py AUDIO")
    talk = Conversation(load(), tools=toolbox)
    talk.run([{"type": "audio", "path": sys.argv[1]}], tool_choice="required", max_new_tokens=80)
    for message in talk.messages[1:]:
        print(message)
