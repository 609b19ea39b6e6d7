"""Write prompts that training never saw, with the value of every attribute: what the fidelity report asks clips for.

python -m scripts.postcard.evaluation_prompts
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rtgen.config.locate import bundled_directory
from scripts.postcard.grammar import ATTRIBUTES, canonical_caption, held_out_scenes

FILE = "evaluation.json"


def evaluation(count: int, seed: int) -> dict[str, Any]:
    """``count`` distinct scenes of the test split, in the form that ``rtgen.fidelity.attributes`` reads."""
    scenes = held_out_scenes(count, seed)
    prompts = [{"prompt": canonical_caption(scene), "values": asdict(scene)} for scene in scenes]
    return {"attributes": {name: list(values) for name, values in ATTRIBUTES.items()}, "prompts": prompts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=bundled_directory("postcard") / FILE)
    arguments = parser.parse_args()
    text = json.dumps(evaluation(arguments.count, arguments.seed), indent=1)
    arguments.out.write_text(text + "\n", encoding="utf-8", newline="\n")
    print(f"{arguments.out}: {arguments.count} prompts")


if __name__ == "__main__":
    main()
