"""Rules of the stage `evaluation`, its judges among them."""

from __future__ import annotations

from transfer_api.rules.rule import Violation, rule, share
from transfer_api.spec import CODE_SWITCHING, GAOKAO_OPEN, LLM_EVAL, PERPLEXITY, Evaluation, JudgeSpending, When

# What is measured with nothing but the suites perplexity and code-switching can be told from the file; tasks of the harness, and the
# languages of a set of questions, cannot.
TOLD_BY_THE_FILE = f"self.suites.all(suite, suite == '{PERPLEXITY}' || suite.matches('^{CODE_SWITCHING}(_|$)'))"

SPENDING = ("spec.evaluation.judge.spending", "spec.evaluation.secondJudge.spending")


@rule("spec.evaluation", cel="!('perplexity' in self.suites) || self.texts.size() > 0", message="the suite perplexity needs texts")
def _perplexity_needs_texts(evaluation: Evaluation) -> Violation | None:
    if PERPLEXITY not in evaluation.suites or evaluation.texts:
        return None
    return Violation(
        field="texts", value=[], allowed="at least one held-out text",
        next_step="Add texts, or name suites that do not need them (suites: [mmlu])",
    )  # fmt: skip


@rule(
    "spec.evaluation",
    cel="!('llm-eval' in self.suites) || (has(self.judge) && self.questions.size() > 0)",
    message="the suite llm-eval needs questions and a judge",
)
def _llm_eval_needs_judge(evaluation: Evaluation) -> Violation | None:
    if LLM_EVAL not in evaluation.suites or (evaluation.judge is not None and evaluation.questions):
        return None
    lacking = "questions" if evaluation.judge is not None else "judge"
    return Violation(
        field=lacking, allowed="at least one set of questions, and a judge",
        next_step=f"Add evaluation.{lacking}, or leave llm-eval out of suites",
    )  # fmt: skip


@rule(
    "spec.evaluation", cel="!('gaokao-bench_open' in self.suites) || has(self.judge)", message="the suite gaokao-bench_open needs a judge"
)
def _exam_needs_judge(evaluation: Evaluation) -> Violation | None:
    if GAOKAO_OPEN not in evaluation.suites or evaluation.judge is not None:
        return None
    return Violation(field="judge", allowed="a judge", next_step=f"Add evaluation.judge, or leave {GAOKAO_OPEN} out of suites")


@rule(
    "spec.evaluation",
    cel="!has(self.secondJudge) || (has(self.judge) && "
    "(self.judge.url != self.secondJudge.url || self.judge.model != self.secondJudge.model))",
    message="secondJudge stands beside judge and is another model",
)
def _second_judge(evaluation: Evaluation) -> Violation | None:
    first, second = evaluation.judge, evaluation.second_judge
    if second is None or (first is not None and (first.url, first.model) != (second.url, second.model)):
        return None
    step = "Name another model; to ask one judge again, set judge.repeats" if first is not None else "Rename it to judge"
    return Violation(field="secondJudge", value=second.model, allowed="a judge beside, and other than, judge", next_step=step)


@rule(
    "spec.evaluation",
    cel="self.questions.all(one, self.questions.exists_one(other, other.name == one.name))",
    message="questions has a name twice",
)
def _unique_questions(evaluation: Evaluation) -> Violation | None:
    return _unique("questions", [source.name for source in evaluation.questions])


@rule(
    *SPENDING,
    cel="!has(self.money) || (has(self.inputPrice) && has(self.outputPrice))",
    message="money is counted with inputPrice and outputPrice",
)
def _money_needs_prices(spending: JudgeSpending) -> Violation | None:
    if spending.money is None or (spending.input_price is not None and spending.output_price is not None):
        return None
    lacking = "inputPrice" if spending.input_price is None else "outputPrice"
    return Violation(field=lacking, allowed="the price of a million tokens", next_step=f"Add {lacking}, or limit tokens instead of money")


@rule(*SPENDING, cel="has(self.tokens) || has(self.money)", message="limits neither tokens nor money")
def _some_limit(spending: JudgeSpending) -> Violation | None:
    if spending.tokens is not None or spending.money is not None:
        return None
    return Violation(allowed="tokens, money or both", next_step="Add tokens or money, or remove spending")


@rule("spec.evaluation", cel="!has(self.baselineModel) || self.baseline", message="baselineModel is scored only as a baseline")
def _baseline_model_is_scored(evaluation: Evaluation) -> Violation | None:
    if evaluation.baseline_model is None or evaluation.baseline:
        return None
    return Violation(field="baseline", value=False, allowed="true with baselineModel", next_step="Remove baseline, or remove baselineModel")


@rule(
    "spec.evaluation",
    cel="!has(self.retention) || (self.baseline && double(self.retention.maxLoss) <= 1.0)",
    message="retention needs a baseline, and a maxLoss of at most 1",
)
def _retention_compares(evaluation: Evaluation) -> Violation | None:
    if evaluation.retention is None:
        return None
    if not evaluation.baseline:
        return Violation(
            field="retention", allowed="only with baseline: true", next_step="Set baseline: true, or remove retention: nothing is compared"
        )
    if float(evaluation.retention.max_loss) > 1:
        return share("retention.maxLoss", evaluation.retention.max_loss, "0.05 for a twentieth of the base model's score")
    return None


def told_by_the_file(evaluation: Evaluation) -> bool:
    """Whether everything that is measured can be told from the file."""
    return all(suite == PERPLEXITY or suite.partition("_")[0] == CODE_SWITCHING for suite in evaluation.suites)


# Texts in several languages have a mean, named as they begin: udhr of udhr-hi and udhr-id, or perplexity of hi and id.
@rule(
    "spec.evaluation",
    cel=f"!has(self.retention) || !{TOLD_BY_THE_FILE} || self.retention.tasks.all(task, "
    f"('{PERPLEXITY}' in self.suites && (task == '{PERPLEXITY}' || self.texts.exists(text, text.name.startsWith(task)))) || "
    f"(task.startsWith('{CODE_SWITCHING}') && self.suites.exists(suite, suite != '{PERPLEXITY}')))",
    message="retention.tasks names what is not measured",
)
def _retention_knows_its_tasks(evaluation: Evaluation) -> Violation | None:
    if evaluation.retention is None or not told_by_the_file(evaluation):
        return None
    texts = [text.name for text in evaluation.texts] if PERPLEXITY in evaluation.suites else []
    own = [suite for suite in evaluation.suites if suite != PERPLEXITY]

    def measured(task: str) -> bool:
        mean = PERPLEXITY in evaluation.suites and task == PERPLEXITY
        return mean or any(name.startswith(task) for name in texts) or (bool(own) and task.startswith(CODE_SWITCHING))

    unknown = [task for task in evaluation.retention.tasks if not measured(task)]
    if not unknown:
        return None
    return Violation(
        field="retention.tasks", value=unknown, allowed=", ".join([*texts, *own]) or "a name in evaluation.texts",
        next_step="Correct the name, add the text to evaluation.texts, or remove it to judge by all that is in English",
    )  # fmt: skip


@rule(
    "spec.evaluation",
    cel="!has(self.retention) || !self.retention.stop || self.when == 'EachCheckpoint'",
    message="retention.stop needs when: EachCheckpoint",
)
def _stop_needs_checkpoints(evaluation: Evaluation) -> Violation | None:
    if evaluation.retention is None or not evaluation.retention.stop or evaluation.when is When.EACH_CHECKPOINT:
        return None
    return Violation(
        field="retention.stop", value=True, allowed="only with when: EachCheckpoint",
        next_step="Set when: EachCheckpoint, or remove stop: at the end there is nothing left to stop",
    )  # fmt: skip


@rule(
    "spec.evaluation", cel="self.texts.all(text, self.texts.exists_one(other, other.name == text.name))", message="texts has a name twice"
)
def _unique_texts(evaluation: Evaluation) -> Violation | None:
    return _unique("texts", [text.name for text in evaluation.texts])


@rule("spec.evaluation", cel="self.suites.all(suite, self.suites.exists_one(other, other == suite))", message="suites has a name twice")
def _unique_suites(evaluation: Evaluation) -> Violation | None:
    return _unique("suites", list(evaluation.suites))


def _unique(field: str, names: list[str]) -> Violation | None:
    twice = sorted({name for name in names if names.count(name) > 1})
    return Violation(field=field, value=twice, allowed="each name once", next_step="Rename or remove the others") if twice else None
