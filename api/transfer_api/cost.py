"""What an experiment costs, before anything runs: tokens, floating-point operations, memory, disk, time.

Estimates by the usual formulas, each of which is printed beside its figure; they decide nothing. With N parameters, of
which A are trained when adapters are, and D tokens:

    full training   6·N·D            2 forward, 2 for the gradient of activations, 2 for the gradient of weights
    (Q)LoRA         4·N·D + 2·A·D    frozen weights need no gradient of their own
    evaluation      2·N·D            forward only

Attention's own term (12 · layers · hidden · sequence length a token) is left out: below a tenth for the models and lengths
that are usual here. Weights, gradients and AdamW's two moments are float32: 16 bytes a trained parameter, 4 a frozen one. AdamW8bit's
moments are a byte each and 4 for a block of 256; a frozen weight of a linear layer is 0.52 bytes in QLoRA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_api.gpu import PEAK_FLOPS
from transfer_api.spec import ActivationCheckpointing, Lora, Method, ModelSource, Optimizer, Precision, Sharding
from transfer_api.stage import DatasetParameters, EvaluationParameters, Execution, StagePlan, TrainingParameters, VocabularyParameters

BYTES_PER_TOKEN = 4
"""UTF-8 bytes of a token, roughly; 4.4 for English, 2.5 to 3.5 for languages the tokenizer does not know."""
BYTES_PER_PARAMETER = 4
MOMENT_BYTES = {Optimizer.ADAMW: 8.0, Optimizer.ADAMW_8BIT: 2 * (1 + 4 / 256)}
"""Both moments of a trained parameter. Beside them: its weight and, but for a checkpoint, its gradient."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: with the scale of a block of 64 in 8 bits, and that of 256 scales."""
ACTIVATION_BYTES = 34
"""Of one token, layer and hidden unit in 16 bits (Korthikanti et al., arXiv 2205.05198, without the attention matrix)."""

CPU_MICRO_BATCH_TOKENS = 1024
"""Larger passes bring nothing on a CPU and cost memory: 486 tokens/s at 1,024, 496 at 2,048 (SmolLM2-135M, two cores)."""
GPU_MICRO_BATCH_TOKENS = 16384
"""Fills a GPU at 1B parameters and more; the logits of a 128K vocabulary then take 8 GiB, unless they are chunked."""

GPU_FLOPS = PEAK_FLOPS["H100"]
"""Before anything runs nobody knows the card."""
GPU_MEMORY = 80 * 10**9
"""Of an H100; the trainer asks the card."""
GPU_EFFICIENCY = 0.40
GPU_RESOURCE = "nvidia.com/gpu"


def micro_batch_tokens(execution: Execution, *, gpu: bool) -> int:
    """Tokens of one forward and backward pass: what the file says, or the device's default."""
    return execution.micro_batch_tokens or (GPU_MICRO_BATCH_TOKENS if gpu else CPU_MICRO_BATCH_TOKENS)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large the base model is, and how that is known."""

    parameters: int
    source: str
    hidden: int = 0
    intermediate: int = 0
    layers: int = 0
    vocabulary: int = 0
    key_value: int = 0
    """Width of keys and values."""

    @classmethod
    def like_llama(cls, parameters: int, source: str) -> ModelSize:
        """Widths of a Llama of that size, where config.json is not at hand: 12 · layers · hidden², layers = hidden / 128."""
        hidden = round((parameters * 128 / 12) ** (1 / 3))
        return cls(
            parameters=parameters, source=source, hidden=hidden, intermediate=round(2.7 * hidden), layers=max(1, round(hidden / 128)),
            vocabulary=32_000, key_value=hidden,
        )  # fmt: skip

    @classmethod
    def from_config(cls, parameters: int, source: str, config: Mapping[str, Any]) -> ModelSize:
        """The widths from a transformers config.json; a name that is not there counts as 0."""
        hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
        head = _whole(config, "head_dim") or (hidden // heads if heads else 0)
        return cls(
            parameters=parameters, source=source, hidden=hidden, intermediate=_whole(config, "intermediate_size"),
            layers=_whole(config, "num_hidden_layers"), vocabulary=_whole(config, "vocab_size"),
            key_value=head * (_whole(config, "num_key_value_heads") or heads),
        )  # fmt: skip

    def with_added_tokens(self, added: int) -> ModelSize:
        """After a vocabulary stage. One matrix is counted: embeddings and head are mostly tied where that matters."""
        grown = self.parameters + added * self.hidden
        return ModelSize(**{**self.__dict__, "parameters": grown, "vocabulary": self.vocabulary + added})

    @property
    def linear(self) -> int:
        """Weights of the linear layers without the head; 0 where the widths are not known."""
        layer = 2 * self.hidden * (self.hidden + self.key_value) + 3 * self.hidden * self.intermediate
        return min(self.parameters, self.layers * layer)

    def adapters(self, lora: Lora) -> int:
        """Trained parameters of LoRA: rank · (inputs + outputs) of each module in each layer, and the embeddings when trained."""
        widths = {
            "q_proj": (self.hidden, self.hidden), "o_proj": (self.hidden, self.hidden),
            "k_proj": (self.hidden, self.key_value), "v_proj": (self.hidden, self.key_value),
            "gate_proj": (self.hidden, self.intermediate), "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip
        each = sum(lora.rank * sum(widths.get(target, (self.hidden, self.hidden))) for target in lora.targets)
        return each * self.layers + (2 * self.vocabulary * self.hidden if lora.train_embeddings else 0)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the workers can do together, in floating-point operations a second, and the assumption behind it."""

    flops: float
    assumption: str


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage; None where it cannot be known before the stage before it has run."""

    tokens: int | None = None
    steps: int | None = None
    flops: float | None = None
    formula: str = ""
    state_bytes: int = 0
    """Memory of weights, gradients and optimizer; parted among the processes unless they are replicas."""
    replicated: bool = False
    activation_bytes: int = 0
    """Memory of one forward and backward pass, in every process."""
    work_bytes: int = 0
    """Disk while the stage runs: checkpoints."""
    artifact_bytes: int = 0
    """Disk for ever: what the stage leaves."""

    def memory_bytes(self, processes: int) -> int:
        """Memory of one process."""
        return self.state_of_process(processes) + self.activation_bytes

    def state_of_process(self, processes: int) -> int:
        """What of the state one process holds."""
        return self.state_bytes if self.replicated else self.state_bytes // processes

    def seconds(self, speed: Speed) -> float | None:
        """Expected time at a speed."""
        return None if self.flops is None else self.flops / speed.flops


def parameters_from_name(name: str) -> int | None:
    """Reads a size as people write it into names: Llama-2-7b-hf, SmolLM2-135M, Mixtral-8x7B. None when there is none."""
    match = re.search(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])", name)
    if match is None:
        return None
    return round(int(match[1] or 1) * float(match[2]) * (10**9 if match[3] in "bB" else 10**6))


def declared_size(source: ModelSource) -> ModelSize | None:
    """The size without the model at hand: spec.model.parameters, else its name; None when neither says it."""
    if source.parameters is not None:
        return ModelSize.like_llama(source.parameters, "spec.model.parameters")
    if (read := parameters_from_name(source.name or source.path or "")) is not None:
        return ModelSize.like_llama(read, "read from the model's name; set spec.model.parameters to be exact")
    return None


def gpu_speed(gpus: int) -> Speed:
    """Speed of all GPUs together."""
    return Speed(
        flops=gpus * GPU_FLOPS * GPU_EFFICIENCY,
        assumption=f"{gpus} GPUs at {GPU_EFFICIENCY:.0%} of {GPU_FLOPS / 1e12:.0f} TFLOP/s (H100, bfloat16)",
    )


def stage_cost(
    stage: StagePlan, size: ModelSize | None, input_bytes: int | None, *, gpu: bool = False, layers_again: int | None = None
) -> StageCost:
    """Cost of a stage.

    Args:
        stage: the stage as planned.
        size: the model that the stage starts from; None when its size is unknown.
        input_bytes: bytes of text that the stage reads; None when they cannot be seen (a hub data set).
        gpu: whether it runs on GPUs, where a pass has more tokens unless the file says how many.
        layers_again: of a training stage, the layers that are computed again in the backward pass; None for all with Always and none
            otherwise: how many Auto takes depends on the memory (`fit.layers_again`).
    """
    parameters = stage.typed_parameters()
    read = None if input_bytes is None else input_bytes // BYTES_PER_TOKEN
    match parameters:
        case TrainingParameters():
            return _training(parameters, size, read, stage.execution, micro_batch_tokens(stage.execution, gpu=gpu), layers_again)
        case DatasetParameters():
            # Each token with its position, in 4 bytes each, and whether it is learned from; and once more until the pieces are packed.
            stored = read or 0
            return StageCost(tokens=read, artifact_bytes=9 * stored, work_bytes=4 * stored, formula=f"bytes / {BYTES_PER_TOKEN}")
        case VocabularyParameters():
            grown = size.with_added_tokens(parameters.added_tokens) if size else None
            return StageCost(artifact_bytes=BYTES_PER_PARAMETER * grown.parameters if grown else 0)
        case EvaluationParameters():
            flops = 2.0 * size.parameters * read if size and read is not None else None
            width = BYTES_PER_PARAMETER // 2 if parameters.precision is Precision.BFLOAT16 else BYTES_PER_PARAMETER
            memory = width * size.parameters if size else 0
            return StageCost(tokens=read, flops=flops, formula="2·N·D, texts only", state_bytes=memory)


def _training(
    training: TrainingParameters, size: ModelSize | None, read: int | None, execution: Execution, micro_batch_tokens: int,
    layers_again: int | None,
) -> StageCost:  # fmt: skip
    step_tokens = training.rows_per_step * training.sequence_length
    tokens, steps = training.tokens, training.steps
    if steps is not None:
        tokens = steps * step_tokens
    elif tokens is None and read is not None and training.epochs is not None:
        tokens = read * training.epochs
    if steps is None and tokens is not None:
        steps = max(1, tokens // step_tokens)
    if size is None:
        return StageCost(tokens=tokens, steps=steps, formula="model size unknown; set spec.model.parameters")
    trained = size.parameters
    per_token, formula = 6.0 * size.parameters, "6·N·D"
    if training.lora is not None:
        trained = size.adapters(training.lora)
        per_token, formula = 4.0 * size.parameters + 2.0 * trained, "4·N·D + 2·A·D"
    in_4_bits = size.linear if training.method is Method.QLORA else 0
    frozen = size.parameters - in_4_bits if training.method.adapters else 0
    moments = round(MOMENT_BYTES[training.optimizer] * trained)
    average = BYTES_PER_PARAMETER * trained if training.ema is not None else 0
    at_once = min(max(1, micro_batch_tokens // training.sequence_length) * training.sequence_length, step_tokens)
    if layers_again is None:
        layers_again = size.layers if execution.activation_checkpointing is ActivationCheckpointing.ALWAYS else 0
    return StageCost(
        tokens=tokens,
        steps=steps,
        flops=None if tokens is None else per_token * tokens,
        formula=formula,
        state_bytes=BYTES_PER_PARAMETER * (2 * trained + frozen) + round(NF4_BYTES * in_4_bits) + moments + average,
        replicated=execution.sharding is Sharding.NONE,
        activation_bytes=at_once * _activation_bytes(training.precision, size, layers_again),
        work_bytes=(execution.checkpoints_kept + 1) * (BYTES_PER_PARAMETER * trained + moments + average),  # one of them being written
        artifact_bytes=BYTES_PER_PARAMETER * size.parameters * (1 + len(training.snapshot_tokens)),
    )


def _activation_bytes(precision: Precision, size: ModelSize, layers_again: int) -> int:
    """Of one token: of the layers that keep theirs, and the float32 inputs of the first layers, which are computed again; and its logits.

    The backward pass comes to those last, one at a time, when what the others kept is free: it needs the room of one layer, if none
    kept anything.
    """
    layer = ACTIVATION_BYTES * (1 if precision is Precision.BFLOAT16 else 2) * size.hidden
    whole = size.layers - layers_again
    return max(whole, min(1, layers_again)) * layer + layers_again * 4 * size.hidden + 8 * size.vocabulary


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
