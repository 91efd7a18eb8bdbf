"""A report's input with made-up figures: enough of everything to look at."""

from __future__ import annotations

import math

from transfer_api.progress import Score
from transfer_api.results import Confusion, Sample, SampleAnswer, Switch
from transfer_evaluator.language import SCRIPTS
from transfer_evaluator.questions import questions
from transfer_evaluator.summary import Curve, ReportInput, StageFacts, StepPoint, ValidationPoint

BITS = {"suite": "perplexity", "metric": "bits_per_byte", "higher_is_better": False, "harness": "transfer-operator, whole documents"}
ACC = {"metric": "acc", "harness": "lm-evaluation-harness 0.4.13, 0-shot, log-likelihood, task version 1"}
KEY = "0123456789abcdef0123456789abcdef"


def scores() -> list[Score]:
    return [
        Score(task="guide-id", language="id", value=1.18, baseline=1.61, difference=-0.43, interval=(-0.47, -0.39), items=82, **BITS),
        Score(task="udhr-id", language="id", value=1.31, baseline=1.58, difference=-0.27, interval=(-0.31, -0.24), items=60, **BITS),
        Score(task="udhr-en", language="en", value=0.702, baseline=0.698, difference=0.004, interval=(-0.003, 0.012), items=60, **BITS),
        Score(suite="mmlu_dev_en", task="mmlu_dev_en", language="en", value=0.287, baseline=0.292, difference=-0.005,
              interval=(-0.05, 0.04), items=281, **ACC),
        Score(suite="cldr_cloze_id", task="cldr_cloze_id", language="id", value=0.44, baseline=0.33, difference=0.11, interval=(0.02, 0.2),
              items=100, **ACC),
        Score(suite="perplexity", task="guide-id", language="id", metric="perplexity", value=17.9, baseline=76.2, difference=-58.3,
              interval=(-63.1, -52.8), items=82, higher_is_better=False),
    ]  # fmt: skip


def curve() -> Curve:
    steps = [
        StepPoint(
            step=n,
            tokens=n * 1024,
            loss=2.4 + 1.6 * math.exp(-n / 12) + 0.06 * math.sin(5 * n),
            world_size=2 if n < 15 else 1 if n < 24 else 3,
        )
        for n in range(1, 41)
    ]
    validation = [
        ValidationPoint(step=n, bits_per_byte={"udhr-id": 1.31 + 0.27 * math.exp(-n / 10), "udhr-en": 0.698 + 0.0001 * n})
        for n in range(0, 41, 5)
    ]
    return Curve(stage="pretraining", steps=steps, validation=validation)


def samples() -> list[Sample]:
    """The first two questions of every language; the adapted model says the next two, the base model English."""
    found = []
    for language in SCRIPTS:
        asked = questions(language)
        for place in range(2):
            answer = f"{asked[place + 2].text}\n{asked[place + 3].text} because weather"
            switch = Switch(start=len(answer) - len("because weather"), end=len(answer), language="en")
            base = SampleAnswer(text="The farmer works in the field.", detected="en")
            adapted = SampleAnswer(text=answer, detected=language, switches=[switch])
            found.append(Sample(language=language, prompt=asked[place].text, base=base, adapted=adapted))
    return found + judged()


def judged() -> list[Sample]:
    """An open question in a script from the right, one in an Indic one, with their scores; the base model's answer has none."""
    full = {"accuracy": 2.5, "fluency": 3.0, "informativeness": 1.0, "logical_coherence": 2.0, "harmlessness": 3.0}
    return [
        Sample(language=language, questions="open", category="everyday", prompt=questions(language)[4].text,
               reference=questions(language)[5].text, base=SampleAnswer(text="The farmer works."),
               adapted=SampleAnswer(text=questions(language)[6].text, scores=full))
        for language in ("ur", "te")
    ]  # fmt: skip


def report_input() -> ReportInput:
    return ReportInput(
        experiment="indonesian",
        language="id",
        scores=scores(),
        curves=[curve()],
        stages=[
            StageFacts(name="baseline", kind="evaluation", key=KEY, complete=True, digest=f"sha256:{'ab' * 32}", seed=0,
                       numbers={"items": 583.0, "tokens": 34210.0, "seconds": 48.2}),
            StageFacts(name="pretraining", kind="pretraining", key=KEY[::-1], complete=True, digest=f"sha256:{'cd' * 32}", seed=0,
                       numbers={"steps": 40.0, "tokens": 40960.0, "lost_steps": 3.0, "productive_seconds": 181.4}),
            StageFacts(name="instruction-tuning", kind="instruction-tuning", key=KEY, complete=False, seed=0),
        ],
        status={"phase": "Complete", "restarts": {"application": 0, "infrastructure": 1, "saved": 2}},
        text_languages={"udhr-id": "id", "udhr-en": "en"},
        samples=samples(),
        confusion=[Confusion(asked="ar", base={"ar": 1, "en": 19}, adapted={"ar": 20}),
                   Confusion(asked="hi", base={"en": 20}, adapted={"hi": 18, "none": 2})],
    )  # fmt: skip
