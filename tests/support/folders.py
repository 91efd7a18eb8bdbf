"""A working folder with model, texts and experiment file, made in milliseconds: nothing in it is ever loaded by torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.documents import EVALUATION, document

_LAYER = [f"self_attn.{letter}_proj" for letter in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
SHAPES = {"model.embed_tokens.weight": [320, 32]} | {f"model.layers.0.{name}.weight": [32, 32] for name in _LAYER}
PARAMETERS = sum(rows * columns for rows, columns in SHAPES.values())
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 256,
}  # fmt: skip


def write_model(folder: Path, **config: Any) -> Path:
    """A model folder whose headers are right and whose tensors are zeros."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    header, end = {}, 0
    for name, (rows, columns) in SHAPES.items():
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [end, end + 4 * rows * columns]}
        end += 4 * rows * columns
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(end))
    return folder


def write_experiment(folder: Path, wanted: dict[str, Any] | None = None) -> Path:
    """experiment.yaml with everything beside it that `document` and the smallest stages read."""
    write_model(folder / "model")
    much = "Semua orang.\n\nMereka.\n" * 2000  # bytes enough for a budget of 41K tokens
    for name, text in (("id.txt", much), ("en.txt", "All people.\n" * 2000), ("test.txt", "Satu.\n\nDua.\n")):
        (folder / name).write_text(text, encoding="utf-8")
    pairs = [{"instruction": f"Say {number}", "input": "", "output": "satu"} for number in range(10, 20)]  # enough for a batch of 1024
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return write_document(folder, wanted or document(evaluation=EVALUATION))


def write_document(folder: Path, wanted: dict[str, Any]) -> Path:
    """experiment.yaml alone, in place of the one that is there."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return path
