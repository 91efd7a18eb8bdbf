"""Tasks of lm-evaluation-harness, from the experiment's task folders and from the harness itself.

The index of the harness's own 14,000 tasks takes seconds to build (15 s on a cold disk), so it is built only when a suite
is neither in the task folders nor in the catalogue, which knows the folder of the harness that has it. In task folders, `data_files`
that are relative paths are relative to the task file's folder: the harness leaves them to the current directory.

Task files may name Python functions (`!function`), which the harness imports and runs: a task folder is as trusted as the
experiment itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset
from jinja2.exceptions import UndefinedError
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from transfer_api.errors import DataError, SpecError, TransferError
from transfer_api.spec import OWN_SUITES
from transfer_evaluator.catalogue import Suite, find, harness_tasks
from transfer_evaluator.catalogue import names as catalogue_names
from transfer_evaluator.contamination import document_text
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.mirror import Mirror, RepositoryFile, repository_file
from transfer_evaluator.score import DOCUMENT, SUBJECT, Item, Metric, TaskResult

FIELD = "spec.evaluation.suites"
MAIN_METRICS = frozenset({"acc", "acc_norm", "exact_match"})
"""Stand in the first part of the table."""
DATA = "transfer_data"
"""Key in a task's metadata: data set and commit of a mirror."""
HUB_NAME = re.compile(r"[A-Za-z0-9][-\w.]*(/[A-Za-z0-9][-\w.]*)?", re.ASCII)
KINDS_OF_FILES = frozenset({"json", "csv", "text", "parquet", "arrow", "pandas", "sql", "webdataset", "xml", "imagefolder", "audiofolder"})
"""What `load_dataset` takes for the format of files rather than for a name."""
PASSAGES = ("passage", "flores_passage", "article", "paragraph", "context")
"""Columns with a text that several questions may share."""


def harness_version() -> str:
    """Version of lm-evaluation-harness."""
    return importlib.metadata.version("lm_eval")


class TaskLibrary:
    """Finds and runs suites.

    Args:
        folders: task folders; a task there hides the harness's own of the same name, and a suite of the catalogue.
        mirror: where data sets of the hub are read from; None for the hub itself.
    """

    def __init__(self, folders: Sequence[Path], mirror: Mirror | None = None) -> None:
        self._folders = [str(folder) for folder in folders]
        self._mirror = mirror
        self._suites: dict[str, Suite] = {}
        """Those that are asked for and in the catalogue."""
        self._manager = self._index(include_defaults=False)
        self._prepared: dict[str, list[Any]] = {}

    def check(self, suites: Iterable[str]) -> None:
        """Sees that every suite exists, and every task that a group of them names, before any model is loaded.

        Raises:
            SpecError: one does not; the message has the nearest names.
        """
        wanted = list(suites)
        self._suites = {suite: found for suite in wanted if suite not in self._manager.task_index and (found := find(suite)) is not None}
        here = all(self._self_contained(suite) for suite in wanted if suite not in self._suites)
        if self._suites or not here:
            self._manager = self._index(include_defaults=not here)
        names = self._manager.task_index
        for suite in wanted:
            if self._task(suite) not in names:
                raise _unknown(suite, names)
            if absent := next((member for member in self._members(self._task(suite)) if member not in names), None):
                raise _unknown(absent, names, f"no such task, which the group {suite} names")

    def run(self, suite: str, model: HarnessModel, *, shots: int | None, limit: int | None, seed: int) -> list[TaskResult]:
        """Scores a task, a group with its tasks, or the tasks of a tag.

        Raises:
            DataError: its data cannot be loaded.
        """
        model.cut.clear()
        found = self._suites.get(suite)
        if found is not None and shots is None:
            shots = found.shots
        results = simple_evaluate(
            model=model, tasks=self._load(suite), task_manager=self._manager, num_fewshot=shots, limit=limit,
            bootstrap_iters=0, log_samples=True,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
        scored = read_results(self._task(suite), results, model.cut)
        return scored if found is None else [_renamed(result, found) for result in scored]

    def data_sets(self, suites: Iterable[str]) -> dict[str, str | None]:
        """Data sets of the hub that suites read, each with the commit that a task file asks for; without reading any.

        Raises:
            SpecError: a suite does not exist.
        """
        return {
            content["dataset_path"]: (content.get("dataset_kwargs") or {}).get("revision")
            for content in self._contents(suites)
            if is_hub_name(content.get("dataset_path"))
        }

    def _contents(self, suites: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The files of the tasks and groups of suites, each once."""
        wanted = list(suites)
        self.check(wanted)
        index = self._manager.task_index
        waiting, seen = [self._task(suite) for suite in wanted], set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in index:
                continue
            seen.add(name)
            entry = index[name]
            content = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path is not None else {}
            waiting += entry.tags if entry.kind is Kind.TAG else _member_names(content) if entry.kind is Kind.GROUP else []
            yield content

    def files(self, suites: Iterable[str]) -> list[RepositoryFile]:
        """Files of repositories that suites read, without reading any.

        Raises:
            SpecError: a suite does not exist.
        """
        return [file for content in self._contents(suites) for file in repository_files(_data_files(content))]

    def _task(self, suite: str) -> str:
        """What the harness calls a suite."""
        return self._suites[suite].task if suite in self._suites else suite

    def _index(self, *, include_defaults: bool) -> Any:
        catalogued = [
            suite.folder for suite in self._suites.values() if not (include_defaults and suite.folder.is_relative_to(harness_tasks()))
        ]
        manager = TaskManager(include_path=[*dict.fromkeys(map(str, catalogued)), *self._folders], include_defaults=include_defaults)
        manager._factory = _Factory(self._folders, self._mirror)
        return manager

    def prepare(self, suites: Iterable[str]) -> None:
        """Loads every suite's data, so that what is wrong with it shows before any model is loaded.

        Raises:
            DataError: it cannot be loaded, has no such split or columns, or no items.
        """
        for suite in suites:
            self._prepared[suite] = self._load(suite)

    def _load(self, suite: str) -> list[Any]:
        if suite in self._prepared:
            return self._prepared.pop(suite)  # once: the harness writes shots and more into it
        try:
            loaded = self._manager.load([self._task(suite)])
        except TransferError:
            raise
        except Exception as error:  # a task may fail in any way: no network, no such file, a bad template
            raise DataError(
                f"cannot be loaded: {type(error).__name__}: {error}", field=FIELD, value=suite,
                next_step="Put its data into a task folder (dataset_path: json) or a mirror, or allow network access to the hub",
            ) from error  # fmt: skip
        group = loaded.get("groups", {}).get(self._task(suite))
        return [group] if group is not None else list(loaded["tasks"].values())

    def _members(self, group: str) -> list[str]:
        """The tasks that a group of the task folders names. A group that has data of its own may define them in passing."""
        entry = self._manager.task_index[group]
        if entry.kind is not Kind.GROUP or entry.yaml_path is None or not self._ours(entry.yaml_path):
            return []
        content = load_yaml(entry.yaml_path, resolve_func=False)
        members = content.get("task")
        return [] if "dataset_path" in content or not isinstance(members, list) else [one for one in members if isinstance(one, str)]

    def _ours(self, path: Path) -> bool:
        return any(Path(path).resolve().is_relative_to(Path(folder).resolve()) for folder in self._folders)

    def _self_contained(self, name: str) -> bool:
        """Whether a suite and all that it names are in the index already."""
        entry = self._manager.task_index.get(name)
        if entry is None:
            return False
        if entry.kind is not Kind.GROUP or entry.yaml_path is None:
            return True
        return all(self._self_contained(member) for member in _member_names(load_yaml(entry.yaml_path, resolve_func=False)))


def _data_files(content: Mapping[str, Any]) -> Any:
    kwargs = content.get("dataset_kwargs")
    return kwargs.get("data_files") if isinstance(kwargs, Mapping) else None


def _member_names(content: Mapping[str, Any]) -> list[str]:
    """Tasks and groups that a group names."""
    members = content.get("task", [])
    named = [one if isinstance(one, str) else one.get("task", one.get("group")) for one in members] if isinstance(members, list) else []
    return [name for name in named if isinstance(name, str)]


def is_hub_name(path: Any) -> bool:
    """Whether the `dataset_path` of a task is a data set of the hub, rather than a kind of files (json) or a folder."""
    return isinstance(path, str) and path not in KINDS_OF_FILES and HUB_NAME.fullmatch(path) is not None


def _renamed(result: TaskResult, suite: Suite) -> TaskResult:
    """Under the name of the catalogue, in its language where the task names none."""
    return dataclasses.replace(result, suite=suite.name, language=suite.language if result.language == "und" else result.language)


def _unknown(suite: str, names: Iterable[str], problem: str = "no such suite") -> SpecError:
    near = difflib.get_close_matches(suite, dict.fromkeys([*OWN_SUITES, *catalogue_names(), *names]), n=5, cutoff=0.5)
    hint = f"Nearest names: {', '.join(near)}" if near else "No name is near it"
    return SpecError(
        problem, field=FIELD, value=suite,
        allowed=f"{', '.join(OWN_SUITES)}, or a task, group or tag of lm-evaluation-harness or of spec.evaluation.taskFolders",
        next_step=f"{hint}. Correct it, or give the folder that has it in spec.evaluation.taskFolders",
    )  # fmt: skip


class _Factory(TaskFactory):  # type: ignore[misc]
    """Resolves relative data files against the folder of the task file, and data sets of the hub in a mirror."""

    def __init__(self, folders: Sequence[str], mirror: Mirror | None) -> None:
        super().__init__()
        self._mirror = mirror
        self._roots = [Path(folder).resolve() for folder in folders]

    def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        try:
            return super()._build_task(entry, overrides)
        except (IndexError, StopIteration, KeyError, UndefinedError) as error:
            raise _data_error(self._load_full_config(entry, overrides), error) or error from error

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        path = Path(entry.yaml_path).resolve() if entry.yaml_path else None
        ours = path is not None and any(path.is_relative_to(root) for root in self._roots)
        kwargs = config.get("dataset_kwargs")
        if ours and path is not None and isinstance(kwargs, dict) and "data_files" in kwargs:
            config["dataset_kwargs"] = {**kwargs, "data_files": resolve_data_files(kwargs["data_files"], path.parent)}
        if files := repository_files(_data_files(config)):
            config["metadata"] = {**(config.get("metadata") or {}), DATA: files[0].source}
        return config if self._mirror is None else mirrored(config, self._mirror)


def mirrored(config: dict[str, Any], mirror: Mirror) -> dict[str, Any]:
    """A task's configuration with the mirror's folder in the place of a data set of the hub, and a note of its commit.

    Raises:
        DataError: the mirror lacks it, or files of it.
    """
    name = config.get("dataset_path")
    if not is_hub_name(name):
        kwargs = config.get("dataset_kwargs")
        if not isinstance(kwargs, Mapping) or "data_files" not in kwargs:
            return config

        def mirrored_file(name: Any) -> Any:
            file = repository_file(name)
            return name if file is None else str(mirror.file(file))

        return {**config, "dataset_kwargs": {**kwargs, "data_files": _each_file(kwargs["data_files"], mirrored_file)}}
    place = str(mirror.place(str(name)))
    kwargs = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "revision"}
    metadata = {**(config.get("metadata") or {}), DATA: mirror.source(str(name))}
    return {**config, "dataset_path": place, "dataset_kwargs": kwargs or None, "metadata": metadata}


def _each_file(value: Any, change: Callable[[Any], Any]) -> Any:
    """`data_files` with each file changed: one, a list of them, or either by split."""
    if isinstance(value, Mapping):
        return {split: _each_file(item, change) for split, item in value.items()}
    if isinstance(value, list):
        return [_each_file(item, change) for item in value]
    return change(value)


def repository_files(value: Any) -> list[RepositoryFile]:
    """The files of repositories among the `data_files` of a task."""
    named: list[Any] = []
    _each_file(value, named.append)
    return [file for name in named if (file := repository_file(name)) is not None]


def _data_error(config: Mapping[str, Any], error: Exception) -> DataError | None:
    """What is wrong between a task and its data, where all that the harness has to say is KeyError; None where it is something else."""
    task = config.get("task")
    if isinstance(error, (IndexError, StopIteration)):
        return DataError(
            "has no items", field=FIELD, value=task, next_step="Put questions into its data, or leave the suite out",
        )  # fmt: skip
    try:
        data = load_dataset(config["dataset_path"], config.get("dataset_name"), **(config.get("dataset_kwargs") or {}))
    except Exception:  # then that is what is wrong
        return None
    for name in ("test_split", "validation_split", "training_split", "fewshot_split"):
        if config.get(name) is not None and config[name] not in data:
            return DataError(
                f"the data of the task {task} has no split {config[name]}", field=FIELD, value=f"{name}: {config[name]}",
                allowed=", ".join(data), next_step="Correct it in the task file, or name the split's file in dataset_kwargs.data_files",
            )  # fmt: skip
    columns = data[config.get("test_split") or config["validation_split"]].column_names
    return DataError(
        f"the task {task} reads a column that its data does not have", field=FIELD, value=str(error), allowed=", ".join(columns),
        next_step="Correct doc_to_text, doc_to_choice and doc_to_target in the task file, or give data with these columns",
    )  # fmt: skip


def resolve_data_files(value: Any, folder: Path) -> Any:
    """`data_files` of a task with relative paths made absolute: a path, a list of them, or either by split.

    Raises:
        DataError: a file is not there.
    """

    def absolute(name: Any) -> Any:
        if not isinstance(name, str) or "://" in name:
            return name
        path = folder / name
        if not any(c in name for c in "*?[") and not path.is_file():
            raise DataError(
                "data file of a task is not there", field="spec.evaluation.taskFolders", value=name,
                next_step=f"Put it into {folder}; relative data_files are looked up beside the task file",
            )  # fmt: skip
        return str(path)

    return _each_file(value, absolute)


def read_results(suite: str, results: Mapping[str, Any], cut: Mapping[tuple[str, int], int] | None = None) -> list[TaskResult]:
    """The harness's results as ours: the group first, then its tasks; items keep what each metric gave.

    Args:
        suite: what was asked for.
        results: of `simple_evaluate`.
        cut: tokens that were cut off an item's context, by task and `doc_id`.
    """
    samples: Mapping[str, list[Mapping[str, Any]]] = results["samples"]
    cut_of: dict[str, dict[int, int]] = {}
    for (task, item), tokens in (cut or {}).items():
        cut_of.setdefault(task, {})[item] = tokens
    tasks = {name: _items(found, cut_of.get(name, {})) for name, found in samples.items()}
    parts = [
        dataclasses.replace(_result(suite, name, items, results, detail=len(tasks) > 1), texts=_texts(samples[name]))
        for name, items in tasks.items()
    ]
    if suite in tasks or suite not in results["results"]:
        return parts
    together = [{SUBJECT: name, **item, "id": f"{name}/{item['id']}"} for name, items in tasks.items() for item in items]
    whole = _result(suite, suite, together, results, detail=False)
    weighed = f"mean over the items of {len(tasks)} tasks" if whole.metrics else f"mean of {len(tasks)} tasks as the group weighs them"
    whole = dataclasses.replace(whole, harness=f"{whole.harness}, {weighed}")
    return [whole, *parts] if whole.metrics or whole.aggregates else parts


def _result(suite: str, task: str, items: list[Item], results: Mapping[str, Any], *, detail: bool) -> TaskResult:
    metrics, aggregates = [], {}
    for key, value in results["results"][task].items():
        name = _metric_name(key)
        if name is None or not isinstance(value, (int, float)):
            continue
        higher = results["higher_is_better"].get(task, {}).get(key.partition(",")[0]) is not False
        if _is_mean(name, items, float(value)):
            metrics.append(Metric(name=name, numerator=name, higher_is_better=higher, main=name in MAIN_METRICS))
        else:
            aggregates[name] = (float(value), higher)
    config = results["configs"].get(task, {})
    metadata = config.get("metadata") or {}
    return TaskResult(
        suite=suite, task=task, language=str(metadata.get("language", "und")),
        harness=_harness(task, results), notes=_oddities(items),
        metrics=metrics, items=items, aggregates=aggregates, detail=detail, cluster=_cluster(items),
    )  # fmt: skip


def _cluster(items: Sequence[Item]) -> str:
    return next((name for name in (DOCUMENT, SUBJECT) if items and all(name in item for item in items)), "")


def _texts(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """The text of each question, once."""
    return list({sample["doc_id"]: document_text(sample["doc"]) for sample in samples}.values())


def _items(samples: Iterable[Mapping[str, Any]], cut: Mapping[int, int]) -> list[Item]:
    """One item a document; a document that went through several filters has its values side by side."""
    items: dict[str, Item] = {}
    for sample in samples:
        identity = f"{sample['doc_id']}-{sample['doc_hash'][:12]}"
        fixed = {"id": identity, "target": str(sample["target"]), "prompt_hash": sample["prompt_hash"][:12]}
        item = items.setdefault(identity, fixed | _shared(sample["doc"]))
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
                item[_with_filter(metric, sample["filter"])] = float(value)
        item.setdefault("responses", [_plain(response) for response in sample["resps"]])
        if sample["doc_id"] in cut:
            item["cut_tokens"] = cut[sample["doc_id"]]
    return list(items.values())


def _shared(document: Any) -> Item:
    """What a question may have in common with others: its passage (as a hash) and its subject."""
    if not isinstance(document, Mapping):
        return {}
    passage = next((document[name] for name in PASSAGES if isinstance(document.get(name), str)), None)
    shared = {DOCUMENT: hashlib.sha256(passage.encode()).hexdigest()[:12]} if passage else {}
    return shared | ({SUBJECT: str(document[SUBJECT])} if document.get(SUBJECT) else {})


def _plain(response: Any) -> Any:
    """A response of one request: its log-likelihood, or the text that was generated."""
    value = response[0]
    return float(value[0]) if isinstance(value, (tuple, list)) else value


def _metric_name(key: str) -> str | None:
    """`acc,none` → `acc`; `exact_match,strict` → `exact_match.strict`; None for standard errors and labels."""
    metric, comma, filtered = key.partition(",")
    return _with_filter(metric, filtered) if comma and not metric.endswith("_stderr") else None


def _with_filter(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric}.{filtered}"


def _is_mean(metric: str, items: Sequence[Item], value: float) -> bool:
    values = [item[metric] for item in items if metric in item]
    return len(values) == len(items) > 0 and abs(sum(values) / len(values) - value) < 1e-9


def _harness(task: str, results: Mapping[str, Any]) -> str:
    """How it was measured. A group has no settings of its own but those that all of its tasks have."""
    tasks = [task] if task in results["configs"] else list(results["configs"])
    configs = [results["configs"][name] for name in tasks]
    version = results["versions"].get(task)
    parts = [
        f"lm-evaluation-harness {harness_version()}",
        _common(f"{shots}-shot" for name in tasks if (shots := results["n-shot"].get(name)) is not None),
        _common("greedy generation" if config.get("output_type") == "generate_until" else "log-likelihood" for config in configs),
        _common(f"split {split}" for config in configs if (split := config.get("test_split") or config.get("validation_split"))),
        _common(f"data {data}" for config in configs if (data := (config.get("metadata") or {}).get(DATA))),
        f"task version {version}" if version not in (None, "N/A") else "",
    ]
    return ", ".join(part for part in parts if part)


def _common(words: Iterable[str]) -> str:
    """What is said of every task, in whichever words."""
    return " or ".join(dict.fromkeys(words))


def _oddities(items: Sequence[Item]) -> list[str]:
    """What somebody who reads the score should know of the items behind it."""
    cut = sum("cut_tokens" in item for item in items)
    empty = sum(any(response == "" for response in item["responses"]) for item in items)
    again = len(items) - len({item["id"].rpartition("-")[2] for item in items})
    counts = {"longer than the model's context and cut from the left": cut, "with an empty answer": empty, "stand there twice": again}
    return [f"{count} of {len(items)} items {what}" for what, count in counts.items() if count]


def quiet() -> None:
    """The harness's own chatter is about how it was called; its warnings stay."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
