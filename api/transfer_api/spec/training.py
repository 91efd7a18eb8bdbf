"""The stages `pretraining` and `instructionTuning`."""

from __future__ import annotations

import enum
from typing import Literal

from pydantic import Field

from transfer_api.amount import Amount, DecimalString, ListedAmount
from transfer_api.base import Contract
from transfer_api.spec.sources import InstructionSource, WeightedSource
from transfer_api.spec.values import Label, Precision

MOST_EPOCHS = 1000


class Method(enum.StrEnum):
    """Which weights are trained."""

    FULL = "Full"
    LORA = "LoRA"
    QLORA = "QLoRA"

    @property
    def adapters(self) -> bool:
        """Whether the model is frozen and adapters are trained."""
        return self is not Method.FULL


class Optimizer(enum.StrEnum):
    """How gradients become steps."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"


class CheckpointInterval(enum.StrEnum):
    """When a training stage saves."""

    STEPS = "Steps"
    AUTO = "Auto"


class Schedule(enum.StrEnum):
    """Learning rate after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"
    WSD = "WSD"


class AnomalyAction(enum.StrEnum):
    """What follows an anomalous step."""

    STOP = "Stop"
    SKIP = "Skip"
    ROLL_BACK = "RollBack"


class ActivationCheckpointing(enum.StrEnum):
    """Whether layers are computed again in the backward pass instead of being kept."""

    AUTO = "Auto"
    NEVER = "Never"
    ALWAYS = "Always"


class Sharding(enum.StrEnum):
    """How much of a training's state a process holds."""

    FULL = "Full"
    NONE = "None"


class Float8(enum.StrEnum):
    """Which products are of 8-bit floats."""

    NONE = "None"
    ROWWISE = "Rowwise"


class Compilation(enum.StrEnum):
    """What of the model is compiled."""

    NONE = "None"
    LAYERS = "Layers"


class Lora(Contract):
    """Low-rank adapters (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: int = Field(default=32, ge=1, le=4096, description="Scale: updates are multiplied by alpha / rank.")
    targets: list[Label] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1, max_length=32, description="Names of the linear modules that get an adapter.",
    )  # fmt: skip
    train_embeddings: bool = Field(default=False, description="Train embeddings and head in full beside the adapters.")


class Anomalies(Contract):
    """What to do about a step whose loss or gradient norm is not a finite number, or whose loss is a spike."""

    action: AnomalyAction = Field(
        default=AnomalyAction.STOP,
        description="Stop: the stage fails. Skip: the step changes nothing, and its rows are left out. RollBack: the same, after going "
        "back to the last checkpoint, in case the weights are damaged. Skipped steps count in the budget; the ledger names them.",
    )
    spike_factor: DecimalString | None = Field(
        default=None,
        description='A loss of more than this times the median of the last `window` steps is a spike, such as "2". Default: none is.',
    )
    window: int = Field(
        default=64, ge=4, le=1024, description="Steps in that median; only with spikeFactor. Until a stage has so many, none is a spike."
    )
    limit: int = Field(default=10, ge=1, le=10_000, description="Most anomalous steps that Skip and RollBack let pass in one stage.")


class Ema(Contract):
    """An exponential moving average of the weights."""

    decay: DecimalString = Field(
        default="0.999", description="Share of the average that stays at a step: 0.999 averages over about the last 1,000 steps."
    )


DECAY = "0.2"
"""Where the schedule WSD says nothing else."""
_METHOD = (
    "Full: every weight; LoRA: adapters, merged at the end; QLoRA: adapters beside frozen weights in 4 bits (NF4, arXiv 2305.14314), "
    "merged into the weights as they were, in one process."
)


class Optimization(Contract):
    """What pretraining and instruction tuning share."""

    method: Method = Field(default=Method.FULL, description=_METHOD)
    lora: Lora | None = Field(default=None, description="Adapters; only with methods LoRA and QLoRA.")
    optimizer: Optimizer = Field(
        default=Optimizer.ADAMW,
        description="AdamW, with moments in float32 (8 bytes a trained parameter), or AdamW8bit, with moments in 8 bits by blocks within a "
        "row (2 bytes; arXiv 2110.02861).",
    )
    sequence_length: int = Field(default=2048, ge=8, le=1_048_576, description="Tokens in a packed row.")
    global_batch_tokens: Amount = Field(
        default=524_288,
        description="Tokens in an optimizer step over all workers; never depends on how many there are. Rounded down to whole rows.",
    )
    learning_rate: DecimalString = Field(default="2e-5", description="Peak learning rate.")
    embedding_learning_rate: DecimalString | None = Field(
        default=None, description="Peak learning rate of embeddings and head, where they are trained. Default: learningRate."
    )
    schedule: Schedule = Field(
        default=Schedule.COSINE,
        description="Learning rate after the warm-up: falling to 0 as a cosine or a line, constant, or constant and then falling in the "
        "last `decay` of the steps (WSD, warmup-stable-decay).",
    )
    warmup: DecimalString = Field(default="0.05", description="Share of the steps in which the learning rate rises to its peak.")
    decay: DecimalString | None = Field(
        default=None, description="Share of the steps in which the learning rate falls to 0; only with schedule: WSD. Default: 0.2."
    )
    embeddings_first: DecimalString = Field(
        default="0",
        description="Share of the steps in which only embeddings and head are trained, before everything is: new rows find their place "
        "while the rest stands still.",
    )
    z_loss: DecimalString = Field(
        default="0",
        description="Weight of the squared log-normaliser in the loss, such as 1e-4; keeps logits small in long runs. 0 for none.",
    )
    weight_decay: DecimalString = Field(default="0.01", description="AdamW weight decay of matrices.")
    gradient_clipping: DecimalString = Field(default="1.0", description="Largest norm of the gradient; 0 for none.")
    ema: Ema | None = Field(
        default=None,
        description="Average the weights over the steps; the average is measured on the way and exported. Default: the last weights.",
    )
    anomalies: Anomalies | None = Field(
        default=None, description="What to do about steps whose loss is not finite or a spike. Default: stop where it is not finite."
    )
    precision: Precision = Field(
        default=Precision.BFLOAT16,
        description="Number format of forward and backward pass. Without GPUs Float32 is faster, unless the processor has AMX.",
    )
    float8: Float8 = Field(
        default=Float8.NONE,
        description="Rowwise: the decoder's linear layers multiply 8-bit floats (E4M3, a scale for each row) where precision is BFloat16; "
        "for models of 3B and more on GPUs of compute capability 8.9 and more, together with compile. Other GPUs refuse it.",
    )
    micro_batch_tokens: Amount | None = Field(
        default=None, description="Most tokens in one forward pass of a worker. Speed and memory only; results do not depend on it."
    )
    activation_checkpointing: ActivationCheckpointing = Field(
        default=ActivationCheckpointing.AUTO,
        description="Whether a layer keeps only its input and is computed again in the backward pass: a third more computing, less "
        "memory, the same result. Auto: as many layers as a pass needs to fit by the estimate of `transfer plan`.",
    )
    sharding: Sharding = Field(
        default=Sharding.FULL,
        description="Full: each process holds a part of weights, gradients and optimizer (FSDP2); None: each holds all of them, and "
        "only gradients travel, once a step (as DDP), for models that fit. Results do not depend on it.",
    )
    compile: Compilation = Field(
        default=Compilation.NONE,
        description="Layers: torch.compile of each decoder layer, faster after a minute or so at the start of each round of workers. Needs "
        "a C++ compiler and Python's headers (on GPUs a C compiler). Results differ by rounding only.",
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Steps between two checkpoints. Default: a tenth of the run, at most 500."
    )
    checkpoint_interval: CheckpointInterval = Field(
        default=CheckpointInterval.STEPS,
        description="Every checkpointSteps steps, or (Auto) as often as loses the least time by what a save costs and how often this run "
        "fails: Young and Daly's interval, within 10 s and 30 min.",
    )
    checkpoints_kept: int = Field(
        default=2, ge=1, le=100, description="Complete checkpoints that are kept. Where the newest is damaged, the one before is used."
    )

    @property
    def adapters(self) -> Lora | None:
        """What is trained beside the frozen model; None where all weights are."""
        return (self.lora or Lora()) if self.method.adapters else None

    @property
    def trains_embeddings(self) -> bool:
        """Whether embeddings and head are trained."""
        return self.adapters is None or self.adapters.train_embeddings


class Pretraining(Optimization):
    """Continues pretraining on a mixture of texts. Exactly one budget: tokens, steps or epochs."""

    tokens: Amount | None = Field(default=None, description="Budget in tokens, such as 500M.")
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Budget in optimizer steps.")
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=MOST_EPOCHS,
        description="Budget in passes over the source that lasts longest at its weight; together they have a batch of rows or more.",
    )
    max_epochs: int = Field(
        default=1, ge=1, le=MOST_EPOCHS, description="How often a source may be repeated to fill a budget of tokens or steps."
    )
    mixture: list[WeightedSource] = Field(min_length=1, max_length=32, description="Texts and their shares.")
    validation_steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Steps between two measurements of bits per byte on evaluation.texts. Default: none. "
        "It tells about a training and does not change it: one that is made already is not made again for it.",
    )
    snapshot_tokens: list[ListedAmount] = Field(
        default=[], max_length=32,
        description="Amounts of tokens, such as [10M, 50M], after which the model is kept as well, as an artifact of its own "
        "that is there at once. Increasing, within the budget; each is made after the first step that reaches it.",
    )  # fmt: skip


class InstructionTuning(Optimization):
    """Tunes on instructions; the loss is on the answers only. At most one budget: epochs (default 1) or steps."""

    method: Method = Field(default=Method.LORA, description=_METHOD)
    global_batch_tokens: Amount = Field(default=65_536, description="Tokens in an optimizer step over all workers.")
    learning_rate: DecimalString = Field(default="1e-4", description="Peak learning rate.")
    data: list[InstructionSource] = Field(min_length=1, max_length=32, description="Instruction data.")
    examples: Amount | None = Field(
        default=None, description="Size of the subset, chosen by seed; a larger subset contains every smaller one. Default: all."
    )
    epochs: int | None = Field(
        default=None, ge=1, le=MOST_EPOCHS, description="Passes over the examples; together they have a batch of rows or more. Default: 1."
    )
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Budget in optimizer steps instead of epochs.")
    template: Literal["Model", "ChatML", "Alpaca", "Llama2", "Llama3"] = Field(
        default="Model", description="Chat template: the model's own (ChatML where it has none), or a named one."
    )
