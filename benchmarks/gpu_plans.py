"""Plans CLIP and SigLIP for 8 and 32 H100s that are not there; see docs/plan.md for what a plan is.

    python -m benchmarks.gpu_plans                      # every plan that benchmarks/results does not have yet
    python -m benchmarks.gpu_plans --only=clip_b16_h100_8 --again

Each plan compiles a whole train step, which takes about a minute of an idle core and much longer of a busy one, and is
written to benchmarks/results/plan_NAME.json; an interrupted series goes on where it was. It needs the extra [gpu-plan].
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"
CLIP, SIGLIP = "experiments/clip_b32.py", "experiments/siglip_b16.py"


class Model(NamedTuple):
    """What is planned, and with how many pairs a card: about as many as its memory holds with remat=none."""

    config: str
    pairs: int
    fsdp: int = 1  # 8, the cards of a host, for models whose optimizer takes long enough to be divided
    compare: str = ""  # a second plan, with other settings


MODELS = {
    "clip_b16": Model(f"{CLIP}:clip_vit_b16", 768),
    "clip_l14": Model(f"{CLIP}:clip_vit_l14", 256, fsdp=8, compare="mesh.fsdp=1"),
    "clip_b32": Model(f"{CLIP}:clip_vit_b32", 2048, compare="loss.tile=512"),
    "siglip_so400m": Model(f"{SIGLIP}:siglip_so400m14_224", 192, fsdp=8, compare="mesh.fsdp=1"),
}
MACHINES = {"h100_8": ("h100:8", 8), "h100_8x4": ("h100:8*4", 32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, such as clip_b16_h100_8,clip_l14_h100_8")
    parser.add_argument("--again", action="store_true", help="also those that benchmarks/results has")
    args = parser.parse_args()
    names = [f"{model}_{machine}" for machine in MACHINES for model in MODELS]
    wanted = args.only.split(",") if args.only else names
    if unknown := [name for name in wanted if name not in names]:
        sys.exit(f"--only: {', '.join(unknown)} is not among {', '.join(names)}.")
    for name in wanted:
        out = RESULTS / f"plan_{name}.json"
        if args.again or not out.exists():
            print(f"{name}:", flush=True)
            if code := subprocess.call(command_of(name, out), env=os.environ | {"JAX_PLATFORMS": "cpu"}):
                sys.exit(code)


def command_of(name: str, out: Path) -> list[str]:
    """The command line that makes a plan."""
    prefix, model = next((prefix, model) for prefix, model in MODELS.items() if name.startswith(f"{prefix}_"))
    topology, cards = MACHINES[name.removeprefix(f"{prefix}_")]
    return [
        *(sys.executable, "-m", "clipjax", "plan", f"--config={model.config}", f"--topology={topology}"),
        *(f"--config.mesh.fsdp={model.fsdp}", f"--config.global_batch_size={model.pairs * cards}"),
        *([f"--compare={model.compare}"] if model.compare else []),
        *("--nosearch", f"--out={out}"),
    ]


if __name__ == "__main__":
    main()
