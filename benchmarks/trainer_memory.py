"""Peak memory against transformers.Trainer at an extended vocabulary: SmolLM2 with 8k rows added, 4k tokens in a pass, float32.

    .venv/bin/python -m benchmarks.trainer_memory [--model FOLDER] [--added 8192] [--tokens 4096]

Each side runs in a process of its own for two optimizer steps (the state of AdamW is there from the second on). What counts is the
highest resident memory less that before the model was loaded, so that imports do not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from benchmarks.trainer_vs_hf import MODEL, hugging_face, ours
from tests.support.pods import make_dataset
from transfer_api.spec import Precision
from transfer_trainer.model import load_model

LENGTH = 512
STEPS = 0  # beyond the two of warm-up


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--added", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def run_side(wanted: argparse.Namespace) -> int:
    """Two steps of one side; prints the growth of this process in bytes."""
    options = argparse.Namespace(
        model=wanted.folder / "model", steps=STEPS, length=LENGTH, batch=wanted.tokens // LENGTH, precision=str(Precision.FLOAT32)
    )
    dataset = make_dataset(wanted.folder / wanted.side, length=LENGTH, labels=1.0)
    (wanted.folder / wanted.side / "model").symlink_to(wanted.folder / "model")
    before = resident("VmRSS")
    if wanted.side == "ours":
        ours(wanted.folder / wanted.side, dataset, options, 1)
    else:
        hugging_face(wanted.folder / wanted.side, dataset, options)
    print(resident("VmHWM") - before)
    return 0


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        model = load_model(wanted.model)
        rows = model.config.vocab_size + wanted.added
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.save_pretrained(Path(name) / "model")
        AutoTokenizer.from_pretrained(wanted.model).save_pretrained(Path(name) / "model")
        del model
        for side in ("ours", "theirs"):
            command = [sys.executable, "-m", "benchmarks.trainer_memory", "--side", side, "--folder", name, "--tokens", str(wanted.tokens)]
            done = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = int(done.stdout.split()[-1])
            print(f"{side}: {found[side] / 1e9:.2f} GB", flush=True)
    note = f"{found['ours'] / 1e9:.2f} against {found['theirs'] / 1e9:.2f} GB; {rows} rows, {wanted.tokens} tokens"
    return {"memory_against_hf": found["ours"] / found["theirs"]}, {"memory_against_hf": note}


if __name__ == "__main__":
    options = arguments().parse_args()
    sys.exit(run_side(options) if options.side else report("trainer", *measure(options)))
