"""A tiny random Llama with a real byte-level tokenizer: 60 kB, made in a second, good for everything but scores."""

from __future__ import annotations

import json
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "All human beings are born free and equal in dignity and rights.",
    "They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama.",
    "Mereka dikaruniai akal dan hati nurani dan hendaknya bergaul satu sama lain dalam semangat persaudaraan.",
]


def tiny_tokenizer(vocabulary: int = 320) -> object:
    """Byte-level BPE with a few merges, end of text, and the two ChatML tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def llama2_tokenizer(*, legacy: bool = False, vocabulary: int = 320) -> object:
    """SentencePiece-style BPE with byte fallback, as Llama 2 has it; `legacy` as its older files wrote it, by a normalizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=vocabulary - 259, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned["vocab"], key=learned["vocab"].get)]
    ids, merges = {piece: number for number, piece in enumerate(pieces)}, [tuple(merge) for merge in learned["merges"]]
    if not legacy:
        return LlamaTokenizer(vocab=ids, merges=merges)
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram_tokenizer(*, byte_fallback: bool = False, vocabulary: int = 120) -> object:
    """SentencePiece's Unigram: as XGLM has it, with an unknown token, or with byte fallback and no splitter, as llm-jp."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, XGLMTokenizer

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(SENTENCES[:3], trainers.UnigramTrainer(vocab_size=vocabulary, show_progress=False))
    # Pieces of one score come in no fixed order from the trainer, and rounding differs.
    learned = sorted(
        ((piece, round(score, 6)) for piece, score in json.loads(learner.to_str())["model"]["vocab"]), key=lambda one: (-one[1], one[0])
    )
    if not byte_fallback:
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        return XGLMTokenizer(vocab=[*((piece, 0.0) for piece in special), *learned])
    pieces = [*((piece, 0.0) for piece in ["<unk>", "<s>", "</s>"]), *((f"<0x{byte:02X}>", -20.0) for byte in range(256)), *learned]
    backend = Tokenizer(models.Unigram(vocab=pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save_tiny_model(folder: Path, *, seed: int = 0, tied: bool = True, layers: int = 2, hidden: int = 32, tokenizer: object = None) -> Path:
    """Writes config, safetensors and tokenizer of a tiny Llama and returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,  # type: ignore[arg-type]
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def drop_tensor(folder: Path, name: str = "model.layers.1.mlp.down_proj.weight") -> None:
    """Takes one tensor out of a model's weights; the file stays a whole safetensors file."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
