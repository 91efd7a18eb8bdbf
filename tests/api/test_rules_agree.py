"""The CRD (values, kinds of lists, CEL) and `transfer validate` refuse the same documents."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.documents import COMMIT, DROP, EVALUATION, PRETRAINING, TUNING, VOCABULARY, changed, document
from tests.support.structural import cel, defaulted, refusals
from transfer_api.crd import crd
from transfer_api.load import SpecErrors, experiment_from
from transfer_api.rules import IMMUTABLE, RULES, is_transition

SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
ALL = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION)
EVALUATED = document(pretraining=None, evaluation=EVALUATION)
BESIDE_ENGLISH = {"texts": [*EVALUATION["texts"], {"name": "udhr-en", "path": "en.txt", "language": "en"}]}
EACH = {**EVALUATION, "when": "EachCheckpoint"}
SNAPSHOTS = changed(ALL, "spec.pretraining.snapshotTokens", ["2K"])
JUDGE = {"url": "https://judge.example/v1", "model": "judge-1"}
JUDGED: dict[str, Any] = {"suites": ["llm-eval"], "questions": [{"name": "open", "path": "questions.jsonl"}], "judge": JUDGE}
DISTILLED = changed(ALL, "spec.vocabulary.distillation", {"snippets": 20, "learningRate": "1e-3"})
DISTILLED = changed(DISTILLED, "spec.vocabulary.initialization", "Distillation")
EPOCHS = {**{name: value for name, value in PRETRAINING.items() if name != "tokens"}, "epochs": 2}
TEXT_FILES = ("a.jsonl", "a.txt.gz", "a.JSONL.zst", "a.parquet", "texts/*", "texts/id-?", "texts/[ab]", "s3://bucket/texts/*.txt")
QLORA = {**PRETRAINING, "method": "QLoRA"}
LORA = {"method": "LoRA", "lora": {"trainEmbeddings": False}}


def server(wanted: dict[str, Any]) -> list[str]:
    """What the API server refuses. It does not look at apiVersion and kind with the schema."""
    return list(refusals(defaulted(wanted, SCHEMA), SCHEMA))


def validate(wanted: dict[str, Any]) -> list[str]:
    try:
        experiment_from(wanted)
    except SpecErrors as errors:
        return [str(error) for error in errors.errors]
    return []


def retained(retention: dict[str, Any], **evaluation: Any) -> dict[str, Any]:
    """With a gate on English."""
    return changed(ALL, "spec.evaluation", {**EVALUATION, **evaluation, "retention": retention})


def few_examples(examples: int | str, **budget: int) -> dict[str, Any]:
    """A tuning with a batch of 511 rows and some tokens."""
    tuning = {**TUNING, "examples": examples, "globalBatchTokens": "65.5K", **budget}
    return changed(ALL, "spec.instructionTuning", tuning)


EIGHT_BITS = changed(document(), "spec.pretraining.float8", "Rowwise")
CASES = [
    ("valid", document(), None),
    ("valid with every stage", ALL, None),
    ("model by name and path", changed(document(), "spec.model", {"path": "m", "name": "a/b", "revision": COMMIT}), "exactly one of name"),
    ("model by nothing", changed(document(), "spec.model", {}), "exactly one of name"),
    ("model name without revision", changed(document(), "spec.model", {"name": "a/b"}), "revision is required with name"),
    ("model name with branch", changed(document(), "spec.model", {"name": "a/b", "revision": "main"}), "40 hexadecimal digits"),
    ("path with revision", changed(document(), "spec.model.revision", COMMIT), "a path has none"),
    (
        "baseline model without revision",
        changed(EVALUATED, "spec.evaluation.baselineModel", {"name": "a/b"}),
        "revision is required with name",
    ),
    ("baseline model by folder", changed(EVALUATED, "spec.evaluation.baselineModel", {"path": "m"}), None),
    (
        "baseline model that nobody scores",
        changed(changed(EVALUATED, "spec.evaluation.baselineModel", {"path": "m"}), "spec.evaluation.baseline", False),
        "scored only as a baseline",
    ),
    ("storage by claim and url", changed(document(), "spec.storage.url", "s3://b/p"), "exactly one of claim and url"),
    ("storage by nothing", changed(document(), "spec.storage", {}), "exactly one of claim and url"),
    ("credentials for a claim", changed(document(), "spec.storage.credentialsSecret", "s"), "goes only with url"),
    ("credentials for a url", changed(document(), "spec.storage", {"url": "s3://b/p", "credentialsSecret": "s"}), None),
    ("text by hub and path", changed(document(), "spec.pretraining.mixture.0.hub", "a/b"), "exactly one of hub"),
    ("text by nothing", changed(document(), "spec.pretraining.mixture.0.path", DROP), "exactly one of hub"),
    ("instructions by nothing", changed(ALL, "spec.instructionTuning.data.0.path", DROP), "exactly one of hub"),
    ("texts of a format that is not read", changed(document(), "spec.pretraining.mixture.0.path", "texts/id.csv"), "not read as texts"),
    ("texts of a folder", changed(document(), "spec.pretraining.mixture.0.path", "texts/"), "not read as texts"),
    *((f"texts {path}", changed(document(), "spec.pretraining.mixture.0.path", path), None) for path in TEXT_FILES),
    ("instructions as text", changed(ALL, "spec.instructionTuning.data.0.path", "pairs.txt"), "not read as objects"),
    ("instructions in a table", changed(ALL, "spec.instructionTuning.data.0.path", "pairs-[0-9].PARQUET"), None),
    ("corpus by hub and path", changed(ALL, "spec.vocabulary.corpus.0.hub", "a/b"), "exactly one of hub"),
    ("two budgets", changed(document(), "spec.pretraining.epochs", 1), "exactly one budget"),
    ("three budgets", changed(changed(document(), "spec.pretraining.epochs", 1), "spec.pretraining.steps", 2), "exactly one budget"),
    ("no budget", changed(document(), "spec.pretraining.tokens", DROP), "exactly one budget"),
    ("two budgets of tuning", changed(changed(ALL, "spec.instructionTuning.epochs", 1), "spec.instructionTuning.steps", 1), "two budgets"),
    ("distillation at a rate of 0", changed(DISTILLED, "spec.vocabulary.distillation.learningRate", "0"), "more than 0 and at most 1"),
    ("distillation within its budget", DISTILLED, None),
    ("distillation that is not chosen", changed(DISTILLED, "spec.vocabulary.initialization", DROP), "is the budget of initialization"),
    ("min over replicas", document(workers={"min": 3, "replicas": 2}), "min is larger than replicas"),
    ("min over the default replicas", document(workers={"min": 2}), "min is larger than replicas"),
    ("replicas over max", document(workers={"replicas": 3, "max": 2}), "replicas is larger than max"),
    ("no stage", document(pretraining=None), "has nothing to do"),
    ("evaluation only", document(pretraining=None, evaluation=EVALUATION), None),
    ("retention", retained({}, **BESIDE_ENGLISH), None),
    ("retention of a third", retained({"maxLoss": "0.33", "tasks": ["udhr-en"]}, **BESIDE_ENGLISH), None),
    ("retention of all twice", retained({"maxLoss": "2"}, **BESIDE_ENGLISH), "a maxLoss of at most 1"),
    ("retention without a baseline", retained({}, **BESIDE_ENGLISH, baseline=False), "retention needs a baseline"),
    ("retention without English", retained({}), "retention judges scores in English, and nothing gives any"),
    ("retention of texts that nobody scores", retained({}, **BESIDE_ENGLISH, suites=["code-switching"]), "nothing gives any"),
    ("retention of a suite that may be in English", retained({}, suites=["perplexity", "mmlu"]), None),
    ("retention of questions that may be in English", retained({}, suites=["perplexity", "language-identity"]), None),
    ("retention of English answers", retained({}, suites=["code-switching_en"]), None),
    ("retention of other answers", retained({}, suites=["code-switching_hi", "perplexity"]), "nothing gives any"),
    ("retention where all is in English", changed(retained({}), "spec.language", "en-GB"), None),
    ("retention of answers in the experiment's English", changed(retained({}, suites=["code-switching"]), "spec.language", "EN"), None),
    (
        "retention where all but the text is in English",
        changed(changed(retained({}), "spec.language", "en"), "spec.evaluation.texts.0.language", "id"),
        "nothing gives any",
    ),
    ("retention of a text in another language", retained({"tasks": ["held-out"]}), None),
    ("retention of a mean of texts", retained({"tasks": ["udhr", "perplexity"]}, **BESIDE_ENGLISH), None),
    ("retention of answers", retained({"tasks": ["code-switching_id"]}, suites=["code-switching"]), None),
    ("retention of no text", retained({"tasks": ["udhr-en", "nosuch"]}, **BESIDE_ENGLISH), "got ['nosuch']"),
    ("retention of answers that nobody asks for", retained({"tasks": ["code-switching_id"]}), "names what is not measured"),
    ("retention of a task of the harness", retained({"tasks": ["nosuch"]}, suites=["perplexity", "mmlu"]), None),
    ("checkpoints that nobody makes", changed(ALL, "spec.evaluation.when", "EachCheckpoint"), "and there are none"),
    ("checkpoints of a model that is only scored", document(pretraining=None, evaluation=EACH), "and there are none"),
    ("checkpoints", changed(SNAPSHOTS, "spec.evaluation", EACH), None),
    ("a gate that stops", changed(SNAPSHOTS, "spec.evaluation", {**EACH, **BESIDE_ENGLISH, "retention": {"stop": True}}), None),
    ("a gate that stops at the end", retained({"stop": True}, **BESIDE_ENGLISH), "retention.stop needs when"),
    ("code-switching", changed(ALL, "spec.evaluation.suites", ["code-switching"]), None),
    (
        "code-switching in a language without questions",
        changed(changed(ALL, "spec.evaluation.suites", ["code-switching"]), "spec.language", "fr-CA"),
        "has no questions in this language",
    ),
    (
        "code-switching in a language of a region",
        changed(changed(ALL, "spec.evaluation.suites", ["code-switching"]), "spec.language", "zh-Hans-CN"),
        None,
    ),
    ("weights of zero", changed(document(), "spec.pretraining.mixture", [{"path": "a.jsonl", "weight": 0}]), "only weights of 0"),
    ("one weight of zero", changed(document(), "spec.pretraining.mixture.0.weight", 0), None),
    ("row over batch", changed(document(), "spec.pretraining.sequenceLength", 1025), "less than one row"),
    ("row equal to batch", changed(document(), "spec.pretraining.sequenceLength", 1024), None),
    ("row over batch of tuning", changed(ALL, "spec.instructionTuning.globalBatchTokens", "0.1K"), "less than one row"),
    ("budget under one batch", changed(document(), "spec.pretraining.tokens", "1K"), "less than one optimizer step"),
    ("budget of one batch", changed(document(), "spec.pretraining.tokens", 1024), None),
    ("budget in Mi", changed(document(), "spec.pretraining.tokens", "1Mi"), None),
    ("snapshots", changed(document(), "spec.pretraining.snapshotTokens", [2048, "4K", "0.041M"]), None),
    ("a snapshot that is no amount", changed(document(), "spec.pretraining.snapshotTokens", ["1OK"]), "is not an amount"),
    ("a snapshot of nothing", changed(document(), "spec.pretraining.snapshotTokens", [0]), "at least 1"),
    ("too many snapshots", changed(document(), "spec.pretraining.snapshotTokens", [*range(1, 34)]), "too many entries"),
    ("warmup over one", changed(document(), "spec.pretraining.warmup", "1.01"), "at most 1"),
    ("warmup of one", changed(document(), "spec.pretraining.warmup", "1"), None),
    ("decay beside warmup", changed(changed(document(), "spec.pretraining.schedule", "WSD"), "spec.pretraining.decay", "0.95"), None),
    ("decay over the rest", changed(changed(document(), "spec.pretraining.schedule", "WSD"), "spec.pretraining.decay", "0.96"), "together"),
    ("decay of a cosine", changed(document(), "spec.pretraining.decay", "0.1"), "allowed: only with schedule: WSD"),
    ("warmup beside the decay that is not written", document(pretraining={**PRETRAINING, "schedule": "WSD", "warmup": "0.81"}), "together"),
    ("adapters without a method", document(pretraining={**PRETRAINING, "lora": {"rank": 16}}), "Add method: LoRA or method: QLoRA"),
    ("adapters of their defaults without a method", document(pretraining={**PRETRAINING, "lora": {}}), "spec.pretraining.lora: "),
    ("examples that fill a batch", few_examples(511), None),
    (
        "examples that cannot fill a batch",
        few_examples(510),
        "at most 65280, a row of sequenceLength (128) for each example. Lower it, or set",
    ),
    ("examples that cannot fill it once", few_examples("0.1K", epochs=5), "more than the examples of all epochs"),
    ("examples that fill it in some epochs", few_examples(100, epochs=6), None),
    ("examples that are read as often as it takes", few_examples(1, steps=5), None),
    ("adapters of tuning in full", changed(ALL, "spec.instructionTuning", {**TUNING, "method": "Full", "lora": {}}), "Tuning.lora: "),
    ("adapters of tuning", changed(ALL, "spec.instructionTuning.lora", {}), None),
    ("adapters of QLoRA", document(pretraining={**QLORA, "lora": {"rank": 4}}), None),
    ("a window without spikes", changed(document(), "spec.pretraining.anomalies", {"window": 8}), "only with spikeFactor"),
    ("a window of spikes", changed(document(), "spec.pretraining.anomalies", {"window": 8, "spikeFactor": "3"}), None),
    ("a limit of nothing", changed(document(), "spec.pretraining.anomalies", {"limit": 2}), "Skip or action: RollBack"),
    ("a limit of steps left out", changed(document(), "spec.pretraining.anomalies", {"limit": 2, "action": "RollBack"}), None),
    ("epochs and the most of them", document(pretraining={**EPOCHS, "maxEpochs": 2}), "only with tokens or steps"),
    ("epochs", document(pretraining=EPOCHS), None),
    ("a subset of files", changed(document(), "spec.pretraining.mixture.0.subset", "id"), "a path has none"),
    ("a split of files", changed(ALL, "spec.instructionTuning.data.0.split", "test"), "a path has none"),
    ("a subset of a hub", changed(document(), "spec.pretraining.mixture.0", {"hub": "a/b", "subset": "id", "split": "test"}), None),
    ("a token of a folder", changed(document(), "spec.model.tokenSecret", {"name": "hub"}), "only with name"),
    (
        "a token of a hub",
        changed(document(), "spec.model", {"name": "a/b", "revision": COMMIT, "tokenSecret": {"name": "hub"}}),
        None,
    ),
    ("contamination by nothing", document(pretraining=None, evaluation={**EVALUATION, "contamination": True}), "nothing is trained"),
    ("contamination", document(evaluation={**EVALUATION, "contamination": True}), None),
    ("embeddings first, over one", changed(document(), "spec.pretraining.embeddingsFirst", "1.1"), "embeddingsFirst is a share"),
    ("embeddings first, not trained", changed(ALL, "spec.instructionTuning.embeddingsFirst", "0.1"), "needs embeddings"),
    (
        "embeddings first, trained",
        changed(changed(ALL, "spec.instructionTuning.embeddingsFirst", "0.1"), "spec.instructionTuning.lora", {"trainEmbeddings": True}),
        None,
    ),
    ("interval chosen", changed(document(), "spec.pretraining.checkpointInterval", "Auto"), None),
    (
        "interval chosen and given",
        changed(changed(ALL, "spec.instructionTuning.checkpointInterval", "Auto"), "spec.instructionTuning.checkpointSteps", 5),
        "chooses when to save",
    ),
    ("z-loss over one", changed(document(), "spec.pretraining.zLoss", "2"), "zLoss"),
    ("a spike of less than the median", changed(document(), "spec.pretraining.anomalies", {"spikeFactor": "1"}), "multiple of the median"),
    ("a spike in tuning", changed(ALL, "spec.instructionTuning.anomalies", {"action": "Skip", "spikeFactor": "1.01"}), None),
    ("an unknown action", changed(document(), "spec.pretraining.anomalies", {"action": "Ignore"}), "Stop, Skip, RollBack"),
    ("an average", changed(document(), "spec.pretraining.ema", {}), None),
    ("an average of nothing but the last", changed(document(), "spec.pretraining.ema", {"decay": "0.0"}), "less than 1"),
    ("an average that never moves", changed(ALL, "spec.instructionTuning.ema", {"decay": "1"}), "less than 1"),
    ("learning rate of zero", changed(document(), "spec.pretraining.learningRate", "0"), "more than 0"),
    ("learning rate as integer", changed(document(), "spec.pretraining.learningRate", "2"), "at most 1"),
    ("embedding rate too large", changed(ALL, "spec.pretraining.embeddingLearningRate", "1e1"), "embeddingLearningRate"),
    ("embedding rate beside adapters", changed(ALL, "spec.instructionTuning.embeddingLearningRate", "1e-3"), "lora.trainEmbeddings: true"),
    (
        "embedding rate of embeddings beside adapters",
        changed(ALL, "spec.instructionTuning", {**TUNING, "embeddingLearningRate": "1e-3", "lora": {"trainEmbeddings": True}}),
        None,
    ),
    ("perplexity without texts", document(evaluation={"suites": ["perplexity", "mmlu"]}), "needs texts"),
    ("default suite without texts", document(evaluation={}), "needs texts"),
    ("tasks without texts", document(evaluation={"suites": ["mmlu"]}), None),
    ("validation without texts", changed(document(), "spec.pretraining.validationSteps", 5), "there are none"),
    ("validation with texts", changed(ALL, "spec.pretraining.validationSteps", 5), None),
    (
        "text name twice",
        document(evaluation={"texts": [{"name": "a", "path": "x.jsonl"}, {"name": "a", "path": "y.jsonl"}]}),
        "texts has a name twice",
    ),
    ("suite twice", document(evaluation={**EVALUATION, "suites": ["mmlu", "mmlu"]}), "suites has a name twice"),
    ("llm-eval", document(evaluation=JUDGED), None),
    ("llm-eval without a judge", changed(document(evaluation=JUDGED), "spec.evaluation.judge", DROP), "needs questions and a judge"),
    ("llm-eval without questions", changed(document(evaluation=JUDGED), "spec.evaluation.questions", DROP), "needs questions and a judge"),
    ("an exam and a judge", document(evaluation={"suites": ["gaokao-bench_open"], "judge": JUDGE}), None),
    ("an exam without a judge", document(evaluation={"suites": ["gaokao-bench_open"]}), "gaokao-bench_open needs a judge"),
    ("judges without llm-eval", document(evaluation={**JUDGED, "suites": ["mmlu"]}), None),
    ("two judges", document(evaluation={**JUDGED, "secondJudge": {**JUDGE, "model": "other"}}), None),
    ("one judge twice", document(evaluation={**JUDGED, "secondJudge": JUDGE}), "is another model"),
    ("second judge alone", document(evaluation={"suites": ["mmlu"], "secondJudge": JUDGE}), "stands beside judge"),
    ("questions of a branch", changed(document(evaluation=JUDGED), "spec.evaluation.questions", [{"name": "q", "hub": "a/b"}]), "a branch"),
    ("questions twice", document(evaluation={**JUDGED, "questions": JUDGED["questions"] * 2}), "questions has a name twice"),
    ("questions by nothing", document(evaluation={**JUDGED, "questions": [{"name": "q"}]}), "exactly one of hub"),
    ("money without prices", document(evaluation={**JUDGED, "judge": {**JUDGE, "spending": {"money": "5"}}}), "inputPrice and outputPrice"),
    (
        "money with prices",
        document(evaluation={**JUDGED, "judge": {**JUDGE, "spending": {"money": "5", "inputPrice": "0.1", "outputPrice": "0.4"}}}),
        None,
    ),
    ("spending without a limit", document(evaluation={**JUDGED, "judge": {**JUDGE, "spending": {}}}), "neither tokens nor money"),
    ("password in a url", document(evaluation={**JUDGED, "judge": {**JUDGE, "url": "https://me:secret@judge.example/v1"}}), "judge.url"),
    ("url of another kind", document(evaluation={**JUDGED, "judge": {**JUDGE, "url": "judge.example/v1"}}), "judge.url"),
    ("new rows never trained", document(vocabulary=VOCABULARY, pretraining={**PRETRAINING, "method": "LoRA"}), "never be trained"),
    ("new rows never tuned", document(vocabulary=VOCABULARY, pretraining=None, instructionTuning=TUNING), "never be trained"),
    (
        "new rows tuned",
        document(vocabulary=VOCABULARY, pretraining=None, instructionTuning={**TUNING, "lora": {"trainEmbeddings": True}}),
        None,
    ),
    ("vocabulary alone", document(vocabulary=VOCABULARY, pretraining=None), None),
    ("amount that is none", changed(document(), "spec.pretraining.tokens", "5OOM"), "is not an amount"),
    ("amount with a space", changed(document(), "spec.pretraining.tokens", "500 M"), "is not an amount"),
    ("amount that is not whole", changed(document(), "spec.pretraining.tokens", "1.0005K"), "is not an amount"),
    ("amount of zero", changed(document(), "spec.pretraining.microBatchTokens", "0.0M"), "at least 1"),
    ("amount of integer zero", changed(document(), "spec.pretraining.microBatchTokens", 0), "at least 1"),
    ("amount below zero", changed(document(), "spec.pretraining.microBatchTokens", -5), "is not an amount"),
    ("amount beyond all", changed(document(), "spec.pretraining.tokens", "1001T"), "larger than"),
    ("largest amount", changed(document(), "spec.pretraining.tokens", "1000T"), None),
    ("amount as boolean", changed(document(), "spec.pretraining.tokens", True), "is not an amount"),
    ("number as string", changed(document(), "spec.pretraining.sequenceLength", "128"), "another type"),
    ("string as number", changed(document(), "spec.pretraining.learningRate", 1), "must be a string"),
    ("unknown field", changed(document(), "spec.pretraining.batch", 1), "not a known field"),
    ("QLoRA with defaults", document(pretraining=QLORA), None),
    ("QLoRA with a GPU", document(pretraining=QLORA, workers={"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "64Gi"}}}), None),
    ("QLoRA with two GPUs", document(pretraining=QLORA, workers={"resources": {"limits": {"nvidia.com/gpu": "2"}}}), "at most one GPU"),
    ("QLoRA with two workers", document(pretraining=QLORA, workers={"replicas": 2}), "in one process"),
    (
        "tuning by QLoRA with two workers",
        document(instructionTuning={**TUNING, "method": "QLoRA"}, workers={"replicas": 2}),
        "Set workers.replicas: 1",
    ),
    (
        "embeddings first that QLoRA does not train",
        document(pretraining={**QLORA, "embeddingsFirst": "0.1"}),
        "embeddings that are trained",
    ),
    ("unknown choice", changed(document(), "spec.pretraining.method", "DoRA"), "Full, LoRA, QLoRA"),
    ("quantity", document(workers={"resources": {"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}}}), None),
    ("quantity that is none", document(workers={"resources": {"limits": {"memory": "64 GB"}}}), "not a quantity"),
    ("quantity below zero", document(workers={"resources": {"limits": {"nvidia.com/gpu": -1}}}), "not a quantity"),
    ("shared memory and interface", document(workers={"sharedMemory": "8Gi", "networkInterface": "eth0.100"}), None),
    ("two interfaces", document(workers={"networkInterface": "eth0,eth1"}), "networkInterface"),
    ("node selector", document(scheduling={"nodeSelector": {"cloud.example/gpu": "a100", "spot": ""}}), None),
    ("label that is none", document(scheduling={"nodeSelector": {"gpu": "not a label"}}), "nodeSelector"),
    ("label as boolean", document(scheduling={"nodeSelector": {"spot": True}}), "allowed: a string"),
    ("queue, priority, runtime", document(scheduling={"queueName": "q", "priorityClassName": "a.b", "runtimeClassName": "gvisor"}), None),
    ("queue too long", document(scheduling={"queueName": "q" * 64}), "at most 63 characters"),
    ("every taint", document(scheduling={"tolerations": [{"operator": "Exists"}]}), None),
    ("one taint", document(scheduling={"tolerations": [{"key": "a.b/c", "value": "x", "effect": "NoSchedule"}]}), None),
    ("taint of no key", document(scheduling={"tolerations": [{"value": "x"}]}), "a toleration has a value only with"),
    ("taint of any value", document(scheduling={"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}), "a toleration has"),
    ("unknown effect", document(scheduling={"tolerations": [{"key": "a", "effect": "Never"}]}), "NoSchedule, PreferNoSchedule"),
    ("8-bit floats", EIGHT_BITS, None),
    (
        "8-bit floats in float32",
        changed(changed(document(), "spec.pretraining.float8", "Rowwise"), "spec.pretraining.precision", "Float32"),
        "float8 is",
    ),
    (
        "8-bit floats of 4 bits",
        changed(changed(document(), "spec.pretraining.float8", "Rowwise"), "spec.pretraining.method", "QLoRA"),
        "float8 is",
    ),
    ("runs of both trackers", document(tracking={"mlflow": {"uri": "https://a.b/c"}, "wandb": {"project": "p", "entity": "e"}}), None),
    ("runs of no tracker", document(tracking={}), "names neither mlflow nor wandb"),
    ("a password in an address", document(tracking={"mlflow": {"uri": "https://ana:secret@a.b"}}), "tracking.mlflow.uri"),
    ("a path for a project", document(tracking={"wandb": {"project": "e/p"}}), "tracking.wandb.project"),
    ("more than the closed list", document(scheduling={"affinity": {}}), "not a known field"),
    ("name too long", changed(document(), "metadata.name", "a" * 53), "at most 52 characters"),
    ("longest name", changed(document(), "metadata.name", "a" * 52), None),
    ("name in capitals", changed(document(), "metadata.name", "Demo"), "lower-case letters"),
]


@pytest.mark.parametrize(("wanted", "says"), [pytest.param(wanted, says, id=name) for name, wanted, says in CASES])
def test_crd_and_validate_refuse_the_same(wanted: dict[str, Any], says: str | None) -> None:
    told = validate(wanted)
    assert bool(server(wanted)) == bool(told)
    if says is None:
        assert told == []
    else:
        assert len(told) == 1
        assert says in told[0]


def test_every_rule_of_a_file_is_broken_by_some_case() -> None:
    refused = {message.split(": ", 1)[1] for _, wanted, _ in CASES for message in server(wanted)}
    assert {rule.message for rule in RULES if rule.cel is not None and not is_transition(rule)} <= refused


AMOUNTS = st.one_of(st.integers(-1, 3000), st.from_regex(r"[0-9]{0,4}(\.[0-9]{0,4})?(K|M|Ki|Mi)?", fullmatch=True))
DECIMALS = st.one_of(
    st.sampled_from(["0", "1", "2e-5", "1e0", "1.0000001", "9e-1", ".5", "1e", "-1"]),
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{0,2})?(e-?[0-9]{1,3})?", fullmatch=True),
)
SOURCE = st.fixed_dictionaries(
    {}, optional={"path": st.just("a.txt"), "hub": st.just("a/b"), "revision": st.just(COMMIT), "weight": st.integers(-1, 2)}
)
TRAINING = {
    "tokens": AMOUNTS,
    "steps": st.integers(0, 2),
    "epochs": st.integers(0, 2),
    "method": st.sampled_from(["Full", "LoRA", "QLoRA"]),
    "optimizer": st.sampled_from(["AdamW", "AdamW8bit", "SGD"]),
    "lora": st.fixed_dictionaries({}, optional={"trainEmbeddings": st.booleans(), "rank": st.integers(0, 2)}),
    "sequenceLength": st.integers(7, 2100),
    "globalBatchTokens": AMOUNTS,
    "warmup": DECIMALS,
    "schedule": st.sampled_from(["Cosine", "WSD"]),
    "decay": DECIMALS,
    "embeddingsFirst": DECIMALS,
    "zLoss": DECIMALS,
    "anomalies": st.fixed_dictionaries({}, optional={"spikeFactor": DECIMALS, "limit": st.integers(0, 2)}),
    "ema": st.fixed_dictionaries({}, optional={"decay": DECIMALS}),
    "learningRate": DECIMALS,
    "validationSteps": st.integers(0, 2),
}
SPECS = st.fixed_dictionaries(
    {
        "language": st.just("id"),
        "model": st.fixed_dictionaries({}, optional={"path": st.just("m"), "name": st.just("a/b"), "revision": st.just(COMMIT)}),
    },
    optional={
        "storage": st.fixed_dictionaries({}, optional={"claim": st.just("c"), "url": st.just("s3://b"), "credentialsSecret": st.just("s")}),
        "pretraining": st.fixed_dictionaries({"mixture": st.lists(SOURCE, max_size=3)}, optional=TRAINING),
        "vocabulary": st.fixed_dictionaries({"addedTokens": AMOUNTS, "corpus": st.just([{"path": "a.jsonl"}])}),
        "evaluation": st.fixed_dictionaries(
            {},
            optional={
                "suites": st.lists(st.sampled_from(["perplexity", "mmlu", "code-switching", "code-switching_en", "bad name"]), max_size=3),
                "texts": st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["a", "b"]), "path": st.just("x")}, optional={"language": st.sampled_from(["en", "id"])}
                    ),
                    max_size=2,
                ),
                "retention": st.fixed_dictionaries({}, optional={"tasks": st.lists(st.sampled_from(["a", "nosuch"]), max_size=2)}),
            },
        ),
        "instructionTuning": st.fixed_dictionaries(
            {"data": st.just([{"path": "a.jsonl"}]), "sequenceLength": st.integers(8, 64), "globalBatchTokens": st.integers(60, 700)},
            optional={"examples": st.integers(1, 20), "epochs": st.integers(1, 3), "steps": st.integers(1, 3)},
        ),
        "workers": st.fixed_dictionaries({}, optional={key: st.integers(0, 3) for key in ("min", "replicas", "max")}),
    },
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=SPECS)
def test_crd_and_validate_refuse_the_same_of_whatever_is_written(spec: dict[str, Any]) -> None:
    wanted = {**document(), "spec": spec}
    assert bool(server(wanted)) == bool(validate(wanted)), (server(wanted), validate(wanted))


@settings(max_examples=100, deadline=None)
@given(base=st.sampled_from([document(), ALL]), data=st.data())
def test_one_changed_value_is_judged_the_same(base: dict[str, Any], data: st.DataObject) -> None:
    path, strategy = data.draw(
        st.sampled_from(
            [(f"spec.pretraining.{name}", strategy) for name, strategy in TRAINING.items()]
            + [("spec.pretraining.mixture.0.weight", st.integers(-1, 1_000_001)), ("spec.seed", st.integers(-1, 2**31))]
        )
    )
    wanted = changed(base, path, data.draw(strategy))
    assert bool(server(wanted)) == bool(validate(wanted)), (server(wanted), validate(wanted))


@pytest.mark.parametrize("field", IMMUTABLE)
def test_what_decides_the_result_cannot_be_changed(field: str) -> None:
    (rule,) = [rule for rule in RULES if rule.name == _kebab(field) + "-unchanged"]
    old = defaulted(ALL, SCHEMA)["spec"]
    replaced = {**old, field: "other" if isinstance(old[field], str) else 7 if isinstance(old[field], int) else {**old[field], "more": 1}}
    without = {key: value for key, value in old.items() if key != field}
    assert cel(rule.cel, self=old, oldSelf=old)
    assert not cel(rule.cel, self=replaced, oldSelf=old)
    if field in ("vocabulary", "pretraining", "instructionTuning", "evaluation"):
        assert cel(rule.cel, self=without, oldSelf=without)
        assert not cel(rule.cel, self=without, oldSelf=old)
        assert not cel(rule.cel, self=old, oldSelf=without)


def test_what_only_says_how_to_run_can_be_changed() -> None:
    old = defaulted(ALL, SCHEMA)["spec"]
    new = {**old, "workers": {"min": 1, "replicas": 2, "resources": {}}, "suspend": True, "restarts": {}, "deadlines": {}, "scheduling": {}}
    assert all(cel(rule.cel, self=new, oldSelf=old) for rule in RULES if is_transition(rule))


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
