"""`TransferExperiment.spec`: what a user writes.

Each field carries its description, unit and default; `crds/` and docs/reference.md are generated from here. Rules across
fields are in `rules.py`, once as CEL for the API server and once as Python for `transfer validate`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from transfer_api.amount import Amount, DecimalString, ListedAmount
from transfer_api.base import Contract
from transfer_api.language import LANGUAGE_PATTERN, check_language

API_GROUP = "transfer-operator.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
MOST_EPOCHS = 1000
NAME_LENGTH = 52  # child names add up to 11 characters, and a label value ends at 63

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
Language = Annotated[
    str,
    AfterValidator(check_language),
    WithJsonSchema({"type": "string", "pattern": LANGUAGE_PATTERN, "maxLength": 35}),
]
Path = Annotated[str, Field(min_length=1, max_length=1024)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", max_length=40)]
HubName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*(/[A-Za-z0-9][-A-Za-z0-9_.]*)?$", max_length=255)]
Label = Annotated[str, Field(min_length=1, max_length=255)]
# Names of the harness's tasks: ceval-valid_law, mmlu, arc_easy.
Suite = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=128)]
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"


def _check_quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("is not a quantity")
    if (isinstance(value, int) and value < 0) or len(str(value)) > 32 or re.fullmatch(QUANTITY_PATTERN, str(value), re.ASCII) is None:
        raise ValueError("is not a quantity")
    return value


# No name, no password and no query: an address stands in logs and in the status.
ServerAddress = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$", max_length=1024)]
Quantity = Annotated[
    int | str,
    BeforeValidator(_check_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32, "minimum": 0}),
]


# Names of cluster objects that may have dots, and values of labels.
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=316)]
InterfaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=15)]


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


class Initialization(enum.StrEnum):
    """How the rows of added tokens start."""

    SUBTOKEN_MEAN = "SubtokenMean"
    MEAN = "Mean"
    MULTIVARIATE = "Multivariate"
    RANDOM = "Random"
    DISTILLATION = "Distillation"


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


class Precision(enum.StrEnum):
    """Number format of the forward and backward pass; weights and optimizer are always float32."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class SecretKey(Contract):
    """A key of a Secret in the experiment's namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key inside the Secret.")


class ModelSource(Contract):
    """A base model: on a hub, pinned to a commit, or a folder in the storage."""

    name: HubName | None = Field(
        default=None, description="Repository on the model hub, such as meta-llama/Llama-2-7b-hf. Exactly one of name and path."
    )
    path: Path | None = Field(
        default=None,
        description="Folder with config.json, safetensors and tokenizer; relative to the storage. Exactly one of name and path.",
    )
    revision: Revision | None = Field(
        default=None, description="Commit of the repository, 40 hexadecimal digits. Required with name: a branch moves."
    )
    token_secret: SecretKey | None = Field(default=None, description="Hub token, for a gated repository.")
    parameters: Amount | None = Field(
        default=None, description="Number of parameters, such as 6.74B. Only for `transfer plan` where the model is not at hand."
    )


class TextSource(Contract):
    """Texts of one language: a hub data set or files in the storage (.jsonl, .txt, .gz and .zst of both, .parquet)."""

    hub: HubName | None = Field(default=None, description="Data set on the hub, such as wikimedia/wikipedia. Exactly one of hub and path.")
    subset: Label | None = Field(default=None, description="Configuration of the hub data set, such as 20231101.id.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(default=None, description="Commit of the hub data set, 40 hexadecimal digits.")
    path: Path | None = Field(
        default=None,
        description="File or glob, relative to the storage, or an address (s3://bucket/texts/*.jsonl, gs://, https://). .jsonl: one object "
        "a line; .parquet: one a row; .txt: documents parted by blank lines. Lines and texts also as .gz or .zst.",
    )
    field: Label = Field(default="text", description="Field that holds the text.")
    language: Language | None = Field(default=None, description="BCP 47 code of the texts. Default: the experiment's language.")


class Deduplication(enum.StrEnum):
    """Which documents count as having been there before."""

    EXACT = "Exact"
    NEAR = "Near"


class TextFilter(Contract):
    """Which documents of a source are kept. What is dropped is counted by reason, in the artifact and in the report."""

    min_characters: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Shorter documents are dropped.")
    max_characters: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Longer documents are dropped.")
    max_repetition: DecimalString | None = Field(
        default=None,
        description="Documents that repeat themselves more are dropped: the share of pieces of 10 characters that stood in the same 1,000 "
        "characters before. Prose has 0.05 to 0.25, one character again and again 0.99.",
    )
    languages: list[Language] = Field(
        default=[], max_length=16,
        description="Documents that py3langid takes for another language are dropped; it chooses among these and 15 large ones. "
        "Default: every language is kept.",
    )  # fmt: skip


class WeightedSource(TextSource):
    """One part of a mixture."""

    weight: int = Field(default=1, ge=0, le=1_000_000, description="Share of rows drawn from this source, relative to the others.")
    filter: TextFilter | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Which documents are kept. Default: all that are not blank."
    )
    deduplicate: Deduplication | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Exact: a document that is in the source already is dropped, white space aside. Near: one that is nearly the same too "
        "(MinHash, estimated Jaccard similarity of at least 0.8). Default: none is.",
    )  # fmt: skip


class NamedText(TextSource):
    """A held-out text."""

    name: Name = Field(description="Name under which its scores are shown.")


class InstructionSource(Contract):
    """Instruction data: objects with instruction, input (may be empty) and output, or with messages."""

    hub: HubName | None = Field(default=None, description="Data set on the hub. Exactly one of hub and path.")
    subset: Label | None = Field(default=None, description="Configuration of the hub data set.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(default=None, description="Commit of the hub data set, 40 hexadecimal digits.")
    path: Path | None = Field(
        default=None, description="JSON Lines or Parquet file or glob, relative to the storage, or an address (s3://, gs://, https://)."
    )


class Storage(Contract):
    """Where models, data and artifacts are. `transfer run` uses its --storage folder instead."""

    claim: Name | None = Field(default=None, description="ReadWriteMany PersistentVolumeClaim. Exactly one of claim and url.")
    url: Annotated[str, Field(pattern=r"^[a-z0-9]+://.+", max_length=1024)] | None = Field(
        default=None, description="Object storage, such as s3://bucket/prefix. Exactly one of claim and url."
    )
    credentials_secret: Name | None = Field(default=None, description="Secret with the credentials of url.")


class Distillation(Contract):
    """Budget of the initialisation Distillation (arXiv 2505.20133)."""

    snippets: int = Field(
        default=100, ge=1, le=10_000,
        description="Snippets of the corpus, 48 tokens each, in which a new token is seen; one counts for every new token in it.",
    )  # fmt: skip
    learning_rate: DecimalString = Field(default="1e-4", description="Learning rate of the new rows at the start; it falls to 0 on a line.")


class Vocabulary(Contract):
    """Adds tokens of the target language to the base model's tokenizer and embeddings."""

    added_tokens: Amount = Field(description="Rows to add to the vocabulary.")
    initialization: Initialization = Field(
        default=Initialization.SUBTOKEN_MEAN,
        description="Start of the new rows: mean of the rows the old tokenizer would use, mean of all rows, that mean with noise of the "
        "old rows' covariance, or normal noise. Distillation starts as the first and trains the new rows alone, towards the hidden "
        "states that the model has with the old tokens.",
    )
    distillation: Distillation | None = Field(default=None, description="Budget; only with initialization: Distillation.")
    pad_to_multiple_of: int | None = Field(
        default=None, ge=1, le=1024,
        description="Rounds the rows of embedding and head up, such as to 128 for fast matrix products. Default: no more rows than tokens.",
    )  # fmt: skip
    corpus: list[TextSource] = Field(min_length=1, max_length=32, description="Texts from which the tokens are learned.")


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
        default=None, ge=1, le=MOST_EPOCHS, description="Budget in passes over the source that lasts longest at its weight."
    )
    max_epochs: int = Field(
        default=1, ge=1, le=MOST_EPOCHS, description="How often a source may be repeated to fill a budget of tokens or steps."
    )
    mixture: list[WeightedSource] = Field(min_length=1, max_length=32, description="Texts and their shares.")
    validation_steps: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Steps between two measurements of bits per byte on evaluation.texts. Default: none."
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
    epochs: int | None = Field(default=None, ge=1, le=MOST_EPOCHS, description="Passes over the examples. Default: 1.")
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Budget in optimizer steps instead of epochs.")
    template: Literal["Model", "ChatML", "Alpaca", "Llama2", "Llama3"] = Field(
        default="Model", description="Chat template: the model's own (ChatML where it has none), or a named one."
    )


PERPLEXITY = "perplexity"
"""Held-out texts; like the next four no task of lm-evaluation-harness but ours."""
CODE_SWITCHING = "code-switching"
"""Answers in the experiment's language; `code-switching_hi` names another."""
LANGUAGE_IDENTITY = "language-identity"
"""Answers in each of `ASKED_LANGUAGES`."""
LLM_EVAL = "llm-eval"
"""Answers to open questions, scored by a judge."""
GAOKAO_OPEN = "gaokao-bench_open"
"""The open-ended questions of GAOKAO-Bench, scored by a judge."""
JUDGED_SUITES = (LLM_EVAL, GAOKAO_OPEN)
LANGUAGE_SUITES = (CODE_SWITCHING, "belebele", "global-mmlu", "xcopa")
"""Exist in several languages: alone in the experiment's, with `_hi` in another."""
OWN_SUITES = (PERPLEXITY, CODE_SWITCHING, LANGUAGE_IDENTITY, *JUDGED_SUITES)


def is_judged(suites: Iterable[str]) -> bool:
    """Whether a judge is asked."""
    return any(suite in JUDGED_SUITES for suite in suites)


def is_harness_suite(suite: str) -> bool:
    """Whether a suite is a task, group or tag of lm-evaluation-harness or of a task folder."""
    return suite not in OWN_SUITES and suite.partition("_")[0] != CODE_SWITCHING


class QuestionSource(Contract):
    """Open questions of the suite llm-eval: objects with the question and, where there are, its category, language and reference answer."""

    name: Name = Field(description="Name under which its scores are shown.")
    hub: HubName | None = Field(
        default=None, description="Data set on the hub, such as llmeval-fdu/LLMEval-1. Exactly one of hub and path."
    )
    subset: Label | None = Field(default=None, description="Configuration of the hub data set.")
    split: Label = Field(default="train", description="Split of the hub data set.")
    revision: Revision | None = Field(
        default=None, description="Commit of the hub data set, 40 hexadecimal digits. Required with hub: a branch moves."
    )
    path: Path | None = Field(default=None, description="JSON Lines or Parquet file or glob, relative to the storage.")
    question_field: Label = Field(default="question", description="Field that holds the question.")
    category_field: Label = Field(default="category", description="Field that holds the category; scores are also shown by category.")
    reference_field: Label = Field(default="reference", description="Field that holds a right answer, which the judge is shown.")
    language: Language | None = Field(
        default=None, description="BCP 47 code of questions without a field language. Default: the experiment's language."
    )


class ReplyFormat(enum.StrEnum):
    """What the server is asked to make of a reply; it is read as strictly either way."""

    JSON_SCHEMA = "JSONSchema"
    JSON_OBJECT = "JSONObject"
    TEXT = "Text"


class JudgeSpending(Contract):
    """Most that a judge may be asked for in one evaluation; then asking stops, and what has no scores is shown as missing."""

    tokens: Amount | None = Field(default=None, description="Tokens of prompts and replies together.")
    money: DecimalString | None = Field(default=None, description="Money, in the currency of the prices. Needs inputPrice and outputPrice.")
    input_price: DecimalString | None = Field(default=None, description="Price of a million tokens of prompts.")
    output_price: DecimalString | None = Field(default=None, description="Price of a million tokens of replies.")


class JudgePace(Contract):
    """How a judge is asked; without any say in the scores."""

    concurrency: int = Field(default=8, ge=1, le=256, description="Most requests at once.")
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000, description="Most requests a minute. Default: no limit.")
    timeout_seconds: int = Field(default=120, ge=1, le=3600, description="How long one reply may take.")
    retries: int = Field(
        default=6,
        ge=0,
        le=100,
        description="Further tries of a request that failed for what may pass (408, 429, 5xx, no connection).",
    )


class Judge(Contract):
    """A model behind an OpenAI-compatible endpoint that scores answers."""

    url: ServerAddress = Field(
        description="Base address of the endpoint, such as https://judge.example/v1; credentials go into tokenSecret."
    )
    model: Label = Field(description="Name of the model at the endpoint; a dated version, where there is one, keeps scores comparable.")
    token_secret: SecretKey | None = Field(
        default=None,
        description="Token of the endpoint. `transfer run` takes it from JUDGE_TOKEN, and of the second judge from SECOND_JUDGE_TOKEN.",
    )
    temperature: DecimalString = Field(default="0", description="Temperature of the replies.")
    max_tokens: int = Field(default=512, ge=16, le=32_768, description="Most tokens of a reply, thinking included.")
    reply_format: ReplyFormat = Field(
        default=ReplyFormat.JSON_SCHEMA, description="What the server is asked to make of a reply; Text for servers that know no formats."
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How often each answer is scored, every second time with the scores asked for in the other order; "
        "their agreement is shown.",
    )
    attempts: int = Field(
        default=3, ge=1, le=10, description="Most requests for one set of scores; without a readable reply they count as missing, not as 0."
    )
    spending: JudgeSpending | None = Field(default=None, description="Limit of spending. Default: none.")
    pace: JudgePace | None = Field(default=None, description="How the judge is asked.")


class When(enum.StrEnum):
    """What is scored."""

    END = "End"
    EACH_CHECKPOINT = "EachCheckpoint"


class Retention(Contract):
    """The gate on English: the condition EnglishRetained says whether it was kept."""

    max_loss: DecimalString = Field(
        default="0.05",
        description="Most that an English score may get worse, as a share of the base model's; the whole 95 % interval must lie within.",
    )
    tasks: list[Suite] = Field(
        default=[], max_length=32, description="Texts or tasks to judge by. Default: every text and task in English that has a baseline."
    )
    stop: bool = Field(
        default=False, exclude_if=lambda value: not value,
        description="Ends the experiment as Failed where a checkpoint has lost more, in the middle of pretraining too; later "
        "stages wait for its scores. Needs when: EachCheckpoint.",
    )  # fmt: skip


class Evaluation(Contract):
    """Scores the result, and the untouched base model beside it."""

    suites: list[Suite] = Field(
        default=[PERPLEXITY], min_length=1, max_length=32,
        description="perplexity, code-switching, language-identity, llm-eval, a suite of docs/evaluation.md (mmlu, c-eval, cmmlu, agieval, "
        "gaokao-bench and its _fill-in and _open, global-mmlu, belebele, xcopa), or a task or group of the harness or of taskFolders.",
    )  # fmt: skip
    when: When = Field(
        default=When.END, exclude_if=lambda value: value is When.END,
        description="End: the result. EachCheckpoint: also the model after each of pretraining.snapshotTokens, for curves over tokens.",
    )  # fmt: skip
    baseline: bool = Field(default=True, description="Score the base model too and compare item by item.")
    baseline_model: ModelSource | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Another model to compare with. Default: the base model, where a stage makes a new one of it.",
    )  # fmt: skip
    texts: list[NamedText] = Field(default=[], max_length=64, description="Held-out texts of the suite perplexity.")
    task_folders: list[Path] = Field(
        default=[], max_length=8, description="Folders with task files of lm-evaluation-harness, relative to the storage."
    )
    mirror: Path | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Folder with the data sets of the tasks, relative to the storage, filled by `transfer evaluate fetch`. "
        "Default: the hub.",
    )  # fmt: skip
    questions: list[QuestionSource] = Field(default=[], max_length=32, description="Open questions of the suite llm-eval.")
    answer_tokens: int = Field(default=512, ge=1, le=32_768, description="Most tokens of an answer that is judged.")
    judge: Judge | None = Field(default=None, description="Scores the answers of the suites llm-eval and gaokao-bench_open.")
    second_judge: Judge | None = Field(default=None, description="Scores them too; the agreement of the two is shown.")
    shots: int | None = Field(default=None, ge=0, le=64, description="Examples before each question. Default: what the task says.")
    limit: int | None = Field(default=None, ge=1, le=1_000_000, description="Most items of one task or text. Default: all.")
    precision: Precision = Field(default=Precision.FLOAT32, description="Number format of the forward pass.")
    shards: int = Field(
        default=1, ge=1, le=256, exclude_if=lambda value: value == 1,
        description="Pods that share the work, each with the model, the resources of a worker and one GPU; scores do not depend on it.",
    )  # fmt: skip
    contamination: bool = Field(
        default=False, exclude_if=lambda value: not value,
        description="Counts the items of each task of which 13 consecutive words stand in the training rows, for the report.",
    )  # fmt: skip
    retention: Retention | None = Field(default=None, description="Gate on what may be lost of English. Default: none.")


class Resources(Contract):
    """Compute resources of a worker, as in a pod."""

    limits: dict[str, Quantity] = Field(
        default={}, max_length=16, description="Limits, such as nvidia.com/gpu: 8. One process is started per GPU."
    )
    requests: dict[str, Quantity] = Field(default={}, max_length=16, description="Requests; default: the limits.")


class Effect(enum.StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class TolerationOperator(enum.StrEnum):
    """How a toleration matches a taint."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class Toleration(Contract):
    """Lets pods run on nodes with a taint, as in a pod."""

    key: LabelKey | None = Field(default=None, description="Key of the taint. Default, with operator Exists: every key.")
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal: key and value are the taint's; Exists: whatever its value."
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint; only with operator Equal.")
    effect: Effect | None = Field(default=None, description="Effect of the taint. Default: every effect.")


class Scheduling(Contract):
    """Where pods may run and when. Changes hold for pods that are made later; `transfer run` ignores it all."""

    queue_name: Name | None = Field(default=None, description="LocalQueue of Kueue that admits the pods, one by one.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods.")
    node_selector: dict[str, LabelValue] = Field(default={}, max_length=16, description="Labels of the nodes on which the pods may run.")
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=16,
        description="Taints that the pods tolerate. Nodes that do not answer are left in seconds anyway.",
    )


class Workers(Contract):
    """How many training pods; may be changed while training."""

    min: int = Field(default=1, ge=1, le=1024, description="Training goes on while at least this many run.")
    replicas: int = Field(default=1, ge=1, le=1024, description="Workers wanted.")
    max: int | None = Field(default=None, ge=1, le=1024, description="Most workers that replicas may be set to. Default: replicas.")
    resources: Resources = Field(default_factory=Resources, description="Compute resources of each worker.")
    shared_memory: Quantity | None = Field(
        default=None,
        description="Size of /dev/shm, part of the pod's memory. Default: all of it. Not used by `transfer run`.",
    )
    network_interface: InterfaceName | None = Field(
        default=None,
        description="Network interface of NCCL and Gloo, such as eth0. Default: the one they choose. Not used by `transfer run`.",
    )


class MLflow(Contract):
    """A tracking server of MLflow, told by its REST interface."""

    uri: ServerAddress = Field(description="Address of the server, such as https://mlflow.example; credentials go into credentialsSecret.")
    experiment: Label | None = Field(
        default=None, description="Experiment of the server that gets the runs; made where there is none. Default: the experiment's name."
    )
    credentials_secret: Name | None = Field(
        default=None,
        description="Secret with MLFLOW_TRACKING_TOKEN, or with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. `transfer run` "
        "takes them from its environment.",
    )


class WeightsAndBiases(Contract):
    """A project of Weights & Biases, told by its own client (extra `tracking`)."""

    project: Annotated[str, Field(pattern=r"^[^/\\#?%:\s]+$", max_length=128)] = Field(description="Project that gets the runs.")
    entity: Annotated[str, Field(pattern=r"^[^/\\#?%:\s]+$", max_length=128)] | None = Field(
        default=None, description="User or team that has the project. Default: that of the key."
    )
    url: ServerAddress | None = Field(default=None, description="Address of a server of one's own. Default: https://api.wandb.ai.")
    token_secret: SecretKey | None = Field(
        default=None,
        description="API key. `transfer run` takes it from WANDB_API_KEY; with WANDB_MODE=offline there it needs none. Default: none, and "
        "runs are written to the folder wandb/ of the storage alone, for `wandb sync`.",
    )


class Tracking(Contract):
    """Where the curves of trainings go besides the storage. A server that is down or slow neither fails nor slows a training."""

    mlflow: MLflow | None = Field(default=None, description="Runs of MLflow.")
    wandb: WeightsAndBiases | None = Field(default=None, description="Runs of Weights & Biases.")


class Restarts(Contract):
    """How many restarts of one cause an experiment may spend. Saving on request is never counted."""

    application: int = Field(default=3, ge=0, le=10_000, description="Crashes of our or the model's code.")
    infrastructure: int = Field(default=20, ge=0, le=10_000, description="Lost pods and nodes.")
    stall: int = Field(default=3, ge=0, le=10_000, description="No step within the stall deadline.")
    preemption: int | None = Field(default=None, ge=0, le=100_000, description="Preemptions, drains and evictions. Default: unlimited.")


class Deadlines(Contract):
    """How long to wait before something counts as stuck, in seconds."""

    startup_seconds: int = Field(default=1800, ge=1, le=604_800, description="From creation of a pod until it runs.")
    stall_seconds: int = Field(default=1800, ge=1, le=604_800, description="Without a step while pods run.")
    below_min_seconds: int = Field(
        default=600, ge=1, le=604_800, description="Fewer than min workers, before the attempt gives its nodes back."
    )


class ExperimentSpec(Contract):
    """One experiment. vocabulary, pretraining, instructionTuning and evaluation are optional; at least one must be there."""

    model: ModelSource = Field(description="The base model.")
    language: Language = Field(description="BCP 47 code of the language to learn; English is what must not be lost.")
    storage: Storage = Field(description="Where models, data and artifacts are.")
    data_secret: Name | None = Field(
        default=None,
        description="Secret with the credentials of s3:// addresses under the names AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL, as far as they are needed. `transfer run` takes them from its environment.",
    )
    vocabulary: Vocabulary | None = Field(default=None, description="Vocabulary extension.")
    pretraining: Pretraining | None = Field(default=None, description="Further pretraining.")
    instruction_tuning: InstructionTuning | None = Field(default=None, description="Instruction tuning.")
    evaluation: Evaluation | None = Field(default=None, description="Evaluation of the result and of the base model.")
    workers: Workers = Field(default_factory=Workers, description="Training pods.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="Where pods may run and when.")
    tracking: Tracking | None = Field(default=None, description="Runs of MLflow or Weights & Biases for each training. Default: none.")
    restarts: Restarts = Field(default_factory=Restarts, description="Restart budgets by cause.")
    deadlines: Deadlines = Field(default_factory=Deadlines, description="When something counts as stuck.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of data order, subsets and random initialisation.")
    suspend: bool = Field(default=False, description="Save, release the workers and wait; false goes on from there.")


class Metadata(Contract):
    """The part of Kubernetes' object metadata that is read here; the rest is the API server's."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
    namespace: Name = "default"
    uid: str = ""
    generation: int = 1
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TransferExperiment(Contract):
    """The resource as a user writes it; the status is a model of its own (`status.py`)."""

    api_version: Literal["transfer-operator.dev/v1alpha1"]
    kind: Literal["TransferExperiment"]
    metadata: Metadata
    spec: ExperimentSpec
