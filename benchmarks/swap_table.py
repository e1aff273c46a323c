"""Any encoder, any LLM: one recipe, four real pairs, one line changed between them, one table.

    python benchmarks/swap_table.py [--out runs/swap_table] [OVERRIDE ...]

Each pair is trained by recipes/swap.yaml (fotaq:train, 600 steps of ctc and 40 of copy) and tested on all of
fotaq:valid: WER of what is heard (CTC text) and of what the LLM writes, Whisper's English normaliser, greedy. The
last row starts from the steering that another LLM's adapter learned (--init-from). Finished pairs are kept in
``out`` and not run again. Overrides are the recipe's, such as stages.0.steps=100.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from steermoe.data import load_source
from steermoe.evaluation.run import evaluate_ears
from steermoe.inference.ears import load
from steermoe.training.recipe import load_recipe
from steermoe.training.run import train

RECIPE = Path(__file__).parent.parent / "recipes" / "swap.yaml"
BASE, TINY = "openai/whisper-base", "openai/whisper-tiny.en"
SMOL, GEMMA = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"
# encoder, LLM, and the row whose adapter it starts from
ROWS = ((BASE, SMOL, None), (TINY, SMOL, None), (BASE, GEMMA, None), (TINY, GEMMA, None), (BASE, GEMMA, 0))


def folder_of(out: Path, encoder: str, llm: str, start: int | None) -> Path:
    names = [name.split("/")[-1] for name in (encoder, llm)]
    return out / "--".join([*names, *([f"from-{start}"] if start is not None else [])])


def run(out: Path, row: int, overrides: list[str]) -> dict[str, Any]:
    """Train and score one row, unless that was done before."""
    encoder, llm, start = ROWS[row]
    folder = folder_of(out, encoder, llm, start)
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    recipe = load_recipe(RECIPE, [f"model.encoder={encoder}", f"model.llm={llm}", f"out={folder}", *overrides])
    first = str(folder_of(out, *ROWS[start]) / "adapter") if start is not None else None
    adapter = folder / "adapter"
    if not adapter.exists():
        train(recipe, resume=(folder / "checkpoints").exists(), init_from=first)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ears, began = load(adapter), time.perf_counter()
    scores = evaluate_ears(ears, load_source("fotaq:valid"), "fotaq:valid", heard=True, out=folder / "valid")
    result = {
        "trained": sum(t.numel() for t in ears.model.adapter_state().values()),
        "minutes": sum(r.get("seconds", 0.0) for r in rows) / 60,
        "heard": scores["columns"]["heard"]["wer"],
        "written": scores["metrics"]["wer"],
        "interval": scores["interval"]["wer"],
        "scoring": (time.perf_counter() - began) / 60,
    }
    done.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/swap_table"))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    arguments = parser.parse_args()
    lines = []
    for row, (encoder, llm, start) in enumerate(ROWS):
        print(f"{encoder} x {llm}", file=sys.stderr, flush=True)
        result = run(arguments.out, row, arguments.overrides)
        low, high = result["interval"]
        steering = "kept from the first row" if start is not None else "new"
        cells = [encoder, llm, steering, f"{result['trained'] / 1e6:.2f} M", f"{result['minutes']:.1f} min"]
        cells += [f"{result['heard']:.1%}", f"{result['written']:.1%} ({low:.1%} to {high:.1%})"]
        lines.append("| " + " | ".join(cells) + " |")
    print("| encoder | LLM | steering | trained | training | heard | written by the LLM |\n" + "|---" * 7 + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
