"""`transfer evaluate`: scores a model, and another one beside it, without an experiment file; `transfer evaluate fetch` fills a mirror.

It writes the file itself, with a stage `evaluation` and nothing else, and runs it as `transfer run` does: the same checks, stage code,
cache, report and exit codes. The file lies beside the report, so that `transfer run` and `kubectl apply` can do the same again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from transfer_api.errors import ExitCode, SpecError
from transfer_api.language import ENGLISH, check_language, primary
from transfer_api.spec import API_VERSION, LANGUAGE_SUITES, LLM_EVAL, NAME_LENGTH, PERPLEXITY, TransferExperiment
from transfer_cli.outputs import ADAPTER, MODEL
from transfer_cli.paths import chosen_storage, default_output, folder

DEFAULT_LANGUAGE = ENGLISH
JUDGES = 2
"""Most of them."""
FETCH = "fetch"
"""In the place of a model; a folder of that name is ./fetch."""
FILE = "experiment.yaml"
"""In the output folder."""
OF_A_HUB = re.compile(r"(?P<name>[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*)(@(?P<revision>[0-9a-f]{40}))?")
JUDGE = re.compile(r"(?P<model>.+?)=(?P<url>https?://.+)")
TEXT = re.compile(r"((?P<language>[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)=)?(?P<path>.+)", re.S)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.usage = "%(prog)s MODEL [options]\n       %(prog)s fetch SUITE ... --mirror DIR [--task-folders DIR ...]"
    parser.add_argument("model", metavar="MODEL", help="model folder, or OWNER/NAME@COMMIT on the model hub; `fetch` fills a mirror")
    parser.add_argument("more", metavar="SUITE", nargs="*", help="with fetch: suites whose data sets are to be in the mirror")
    parser.add_argument("--suites", metavar="A,B", help="what is measured (default: perplexity where there are texts); docs/evaluation.md")
    parser.add_argument("--baseline", metavar="MODEL", help="model to compare with, item by item")
    parser.add_argument(
        "--languages",
        metavar="A,B",
        help="BCP 47 codes: languages of suites that exist in several, the first being the target (default: those of --texts and "
        "--questions, English last; else en)",
    )
    parser.add_argument("--texts", nargs="+", metavar="[LANGUAGE=]FILE", default=[], help="held-out texts of the suite perplexity")
    parser.add_argument("--task-folders", nargs="+", metavar="DIR", default=[], help="folders with task files of your own")
    parser.add_argument(
        "--questions", nargs="+", metavar="[LANGUAGE=]FILE", default=[],
        help="open questions of the suite llm-eval: JSON Lines, Parquet, or OWNER/NAME@COMMIT on the hub",
    )  # fmt: skip
    parser.add_argument(
        "--judge", nargs="+", metavar="JUDGE", default=[],
        help="one or two that score the answers: MODEL=URL, or a YAML file with the fields of evaluation.judge; their tokens are "
        "JUDGE_TOKEN and SECOND_JUDGE_TOKEN",
    )  # fmt: skip
    parser.add_argument("--answer-tokens", type=int, metavar="N", help="most tokens of an answer to an open question (default: 512)")
    parser.add_argument("--mirror", metavar="DIR", help="data sets of the suites, filled by `transfer evaluate fetch` (default: the hub)")
    parser.add_argument("--shots", type=int, metavar="N", help="examples before each question (default: as the suite says)")
    parser.add_argument("--limit", type=int, metavar="N", help="most items of one task or text")
    parser.add_argument("--shards", type=int, metavar="N", help="processes that share the work, each with the model (default: 1)")
    parser.add_argument("--output", type=folder, metavar="DIR", help="report, results and status (default: runs/evaluate-MODEL)")
    parser.add_argument(
        "--storage",
        type=folder,
        metavar="DIR",
        help="finished evaluations, which are not done again (default: $TRANSFER_STORAGE or runs/.storage)",
    )


def run(options: argparse.Namespace) -> int:
    """Scores the model, or goes on with it; or fills a mirror. Exit codes: those of `transfer run`."""
    if options.model == FETCH:
        return fetch(options)
    if options.more:
        raise SpecError(
            "are several models", field="MODEL", value=[options.model, *options.more], allowed="one",
            next_step="Name the other one with --baseline, or evaluate them one after the other",
        )  # fmt: skip
    import yaml

    from transfer_cli.run import start

    experiment, document = build(options)
    output = (options.output or default_output(experiment.metadata.name)).absolute()
    storage = chosen_storage(options.storage)
    kept = {FILE: yaml.safe_dump(document, sort_keys=False, allow_unicode=True)}
    return start(experiment, storage=storage, output=output, search=(Path.cwd(),), kept=kept)


def fetch(options: argparse.Namespace) -> int:
    """Fills the mirror with the data sets of the suites and says what it has."""
    from transfer_cli.mirror import data_sets_of, fill, fill_files
    from transfer_evaluator.mirror import Mirror

    suites = _in_each([*options.more, *_split(options.suites)], _checked(_split(options.languages)) or [DEFAULT_LANGUAGE])
    if not suites or options.mirror is None:
        field, what = ("SUITE", "no suite") if not suites else ("--mirror", "no folder")
        raise SpecError(f"{what} is named", field=field, next_step="Write `transfer evaluate fetch SUITE ... --mirror DIR`")
    data_sets, files = data_sets_of(suites, options.task_folders)
    fill(Mirror(Path(options.mirror)), data_sets, print)
    fill_files(Mirror(Path(options.mirror)), files, print)
    if not data_sets and not files:
        print("These suites read no data set of the hub.")
    return ExitCode.COMPLETE


def build(options: argparse.Namespace) -> tuple[TransferExperiment, dict[str, Any]]:
    """The experiment that the options describe, and its document as a file would have it.

    Raises:
        SpecErrors: as `load_experiment`, such as for a suite without what it needs.
        SpecError: a model is no folder here, and is not named as one on a hub.
    """
    from transfer_api.load import experiment_from

    named = _checked(_split(options.languages))
    texts = [_text(text, [*named, DEFAULT_LANGUAGE][0]) for text in options.texts]
    questions = [_question_set(given, [*named, DEFAULT_LANGUAGE][0]) for given in options.questions]
    languages = named or _languages_of([*texts, *questions]) or [DEFAULT_LANGUAGE]
    suites = _split(options.suites) or [*([PERPLEXITY] if texts else []), *([LLM_EVAL] if options.questions else [])]
    if not suites:
        raise SpecError(
            "names nothing to measure", field="--suites", allowed="suites of docs/evaluation.md, parted by commas",
            next_step="Add --suites mmlu, --texts FILE for perplexity, or --questions FILE --judge MODEL=URL for llm-eval",
        )  # fmt: skip
    asked = _in_each(suites, named or list(map(primary, languages)), [Path(folder) for folder in options.task_folders])
    evaluation: dict[str, Any] = {"suites": asked, "baseline": options.baseline is not None}
    judges = _judges(options.judge)
    wanted = {
        "baselineModel": _model(options.baseline, "--baseline") if options.baseline is not None else None,
        "texts": _named_apart(texts),
        "taskFolders": [_place(folder) for folder in options.task_folders],
        "mirror": _place(options.mirror) if options.mirror is not None else None,
        "questions": _named_apart(questions),
        "answerTokens": options.answer_tokens,
        **dict(zip(("judge", "secondJudge"), judges, strict=False)),
        "shots": options.shots,
        "limit": options.limit,
        "shards": options.shards,
    }
    evaluation |= {name: value for name, value in wanted.items() if value not in (None, [])}
    document = {
        "apiVersion": API_VERSION, "kind": "TransferExperiment", "metadata": {"name": _name(options.model)},
        "spec": {
            "model": _model(options.model, "MODEL"), "language": languages[0],
            "storage": {"claim": "experiments"}, "evaluation": evaluation,
        },
    }  # fmt: skip
    return experiment_from(document, "transfer evaluate"), document


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _checked(languages: list[str]) -> list[str]:
    for language in languages:
        try:
            check_language(language)
        except ValueError as error:
            raise SpecError(str(error), field="--languages", value=language, next_step="Correct it") from error
    return languages


def _languages_of(sources: list[dict[str, Any]]) -> list[str]:
    """The languages of texts and questions, English last: it is what is not to be lost, and the first one is the target."""
    return sorted(dict.fromkeys(source["language"] for source in sources), key=lambda code: primary(code) == ENGLISH)


def _in_each(suites: list[str], languages: list[str], folders: list[Path] | None = None) -> list[str]:
    """Suites that exist in several languages, once in each; so are tasks of the folders that are only named with their language."""
    from transfer_evaluator.suites import named

    ours = named("task|group", {*suites, *(f"{suite}_{one}" for suite in suites for one in languages)}, folders or [])
    found: list[str] = []
    for suite in suites:
        each = [f"{suite}_{one}" for one in languages]
        found += each if suite in LANGUAGE_SUITES or (suite not in ours and any(one in ours for one in each)) else [suite]
    return list(dict.fromkeys(found))


def _model(given: str, option: str) -> dict[str, Any]:
    """A folder here, or a repository of the hub; what looks like neither is taken for a folder, which the checks before a run then miss."""
    of_hub = None if Path(given).exists() else OF_A_HUB.fullmatch(given)
    if of_hub is None:
        return {"path": _place(given)}
    if of_hub["revision"] is None:
        raise SpecError(
            "is no folder here, and on a model hub it needs its commit, because a branch moves", field=option, value=given,
            allowed="a folder, or OWNER/NAME@COMMIT with 40 hexadecimal digits",
            next_step=f"Correct the folder, or copy the commit from the page of {given}",
        )  # fmt: skip
    return {"name": of_hub["name"], "revision": of_hub["revision"]}


def _place(path: str) -> str:
    """As it is found from here, for the file that is kept is read from elsewhere; one that is not here may be in the storage."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _text(given: str, language: str, option: str = "--texts") -> dict[str, Any]:
    found = TEXT.fullmatch(given)
    if found is None:
        raise SpecError("names no file", field=option, value=given, allowed="FILE or LANGUAGE=FILE", next_step="Correct it")
    path = Path(found["path"])
    return {"name": _plain(path.name.partition(".")[0]), "path": _place(found["path"]), "language": found["language"] or language}


def _question_set(given: str, language: str) -> dict[str, Any]:
    """Open questions of a file, or of a data set of the hub."""
    found = TEXT.fullmatch(given)
    of_hub = OF_A_HUB.fullmatch(found["path"]) if found and not Path(found["path"]).exists() else None
    if found is None or of_hub is None or of_hub["revision"] is None:
        return _text(given, language, "--questions")
    name = {"name": _plain(of_hub["name"].partition("/")[2]), "hub": of_hub["name"], "revision": of_hub["revision"]}
    return {**name, "language": found["language"] or language}


def _judges(given: list[str]) -> list[dict[str, Any]]:
    """Judges by model and address, or as a file of their own has them."""
    if len(given) > JUDGES:
        raise SpecError("are too many", field="--judge", value=given, allowed="one or two", next_step="Name fewer")
    return [{"model": found["model"], "url": found["url"]} if (found := JUDGE.fullmatch(one)) else _judge_file(one) for one in given]


def _judge_file(path: str) -> dict[str, Any]:
    import yaml

    from transfer_api.load import read_text

    problem = "is neither MODEL=URL nor a file with the fields of evaluation.judge"
    try:
        content = yaml.safe_load(read_text(Path(path)))
    except (SpecError, yaml.YAMLError) as error:
        problem, content = f"{problem}: {' '.join(str(error).split())}", None
    if not isinstance(content, dict):
        raise SpecError(problem, field="--judge", value=path, next_step="Write --judge MODEL=https://.../v1, or correct the file")
    return content


def _named_apart(texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files of one name in several folders get a number."""
    counts: dict[str, int] = {}
    named = []
    for text in texts:
        counts[text["name"]] = number = counts.get(text["name"], 0) + 1
        named.append(text if number == 1 else {**text, "name": f"{text['name']}-{number}"})
    return named


def _name(model: str) -> str:
    """Of the experiment and of its folder below runs/: after the model's folder, or the run that a folder `model` is of."""
    path = Path(model.partition("@")[0]).absolute()
    name = path.parent.name if path.name in (MODEL, ADAPTER) else path.name
    return _plain(f"evaluate-{name}")[:NAME_LENGTH].rstrip("-")


def _plain(name: str) -> str:
    """A name that a resource may have."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "text"
