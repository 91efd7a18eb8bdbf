"""Reads experiment files: YAML in, a checked `TransferExperiment` or every problem at once out.

A file that passes here must also pass the API server, so YAML is read as kubectl reads it (`no` is a boolean, `2e-5` a
number) and nothing is converted: a string where a number is wanted is an error, as it is there.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from transfer_api.errors import SpecError, TransferError, shorten
from transfer_api.partial import readable_part
from transfer_api.problems import explain, field_path, no_value, suggestion
from transfer_api.rules import check_rules
from transfer_api.spec import API_GROUP, API_VERSION, TransferExperiment

KIND = "TransferExperiment"
FLOAT_WITHOUT_DOT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
"""What kubectl sends as a number although PyYAML, which wants a dot in a float, takes it for a string: `2e-5`."""

_LARGEST_FILE = 1 << 20  # etcd takes no larger object either
_MOST_VALUES = 100_000  # a file of aliases can expand without end
_DEEPEST = 64
_LONGEST_NUMBER = 100  # characters; Python refuses to write whole numbers of more than 4,300 digits


class SpecErrors(SpecError):
    """Every problem of a file; `errors` has them one by one."""

    def __init__(self, source: str, errors: Sequence[TransferError]) -> None:
        self.source = source
        self.errors = tuple(errors)
        super().__init__(f"{source} cannot work")

    def _text(self) -> str:
        if len(self.errors) == 1:
            return f"{self.source}: {self.errors[0]}"
        return "\n  ".join([f"{self.source}: {len(self.errors)} problems", *map(str, self.errors)])


def load_experiment(path: Path) -> TransferExperiment:
    """The one experiment of a file.

    Raises:
        SpecErrors: the file cannot be read, is not YAML, holds no or several experiments, or the experiment cannot work.
    """
    experiments = load_experiments(path)
    if len(experiments) > 1:
        names = ", ".join(experiment.metadata.name for experiment in experiments)
        raise SpecErrors(
            str(path), [SpecError("holds several experiments", value=names, allowed="one", next_step="Put each into a file of its own")]
        )
    return experiments[0]


def load_experiments(path: Path) -> list[TransferExperiment]:
    """Every experiment of a file, also of one that `kubectl get -o yaml` wrote as a List.

    Documents of other API groups beside them (a Namespace, a Secret) are passed over.

    Raises:
        SpecErrors: as `load_experiment`, with the problems of every document.
    """
    try:
        documents = [document for document in _items(_parse(read_text(path))) if document is not None]
        ours = [document for document in documents if not _foreign(document)] or documents
        if not ours:
            raise SpecError("is empty", next_step=f"Begin with apiVersion: {API_VERSION} and kind: {KIND}")
    except SpecError as error:
        raise SpecErrors(str(path), [error]) from error
    experiments: list[TransferExperiment] = []
    errors: list[TransferError] = []
    for number, document in enumerate(ours, start=1):
        try:
            experiments.append(experiment_from(document))
        except SpecErrors as error:
            prefix = f"document {number}: " if len(ours) > 1 else ""
            errors.extend(_prefixed(prefix, problem) for problem in error.errors)
    names = [(experiment.metadata.namespace, experiment.metadata.name) for experiment in experiments]
    errors += [
        SpecError("stands there twice", field="metadata.name", value=name, next_step="Name each experiment of a file differently")
        for _, name in sorted({name for name in names if names.count(name) > 1})
    ]
    if errors:
        raise SpecErrors(str(path), errors)
    return experiments


def experiment_from(document: Any, source: str = "experiment") -> TransferExperiment:
    """Checks one parsed document: its fields, then the rules across fields.

    Raises:
        SpecErrors: with every problem of the fields, and every rule that is broken by those that can be read.
    """
    errors = _not_ours(document) or list(_odd_values(document))
    if errors:
        raise SpecErrors(source, errors)
    wanted = {key: value for key, value in document.items() if key != "status"}  # `kubectl get -o yaml` writes it
    try:
        # Strict JSON, by alias only: exactly what the API server would take.
        experiment = TransferExperiment.model_validate_json(json.dumps(wanted), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        part = readable_part(wanted.get("spec"), error)
        broken = check_rules(part, whole=False) if part is not None else []
        raise SpecErrors(source, [*explain(error, TransferExperiment), *broken]) from error
    if broken := check_rules(experiment.spec):
        raise SpecErrors(source, broken)
    return experiment


def read_text(path: Path) -> str:
    """The text of a small file that a person names, or of a pipe (`transfer validate <(…)`), read no further than such a file may go.

    Raises:
        SpecError: it cannot be read, is too large, a device, or not UTF-8.
    """
    try:
        # A pipe that nobody writes into is empty so; to wait for a writer may be for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            state = os.fstat(file.fileno())
            if not (stat.S_ISREG(state.st_mode) or stat.S_ISFIFO(state.st_mode)):
                raise SpecError("is neither a file nor a pipe", next_step="Name a file")
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise SpecError("no such file", next_step="Check the path") from error
    except IsADirectoryError as error:
        raise SpecError("is a folder", allowed="a file", next_step=f"Name a file in it: {path}/*.yaml") from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", next_step="Check its permissions") from error
    if len(content) > _LARGEST_FILE:
        raise SpecError("is too large", allowed=f"at most {_LARGEST_FILE:,} bytes", next_step="Is it the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError(f"is not UTF-8: byte 0x{content[error.start]:02x} in line {line}", next_step="Save it as UTF-8") from error


def _parse(text: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"is not YAML: {error.problem or error.context}{where}", next_step="Mend that line") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise SpecError(f"is not YAML: {reason}", next_step="Mend it; `transfer validate` shows whether it is right") from error


class _HugeNumber(str):
    """A whole number as it was written, too long for any field: Python could read it, but neither write nor compare it as JSON."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the types that kubectl sees, and without silent duplicates."""

    # kubectl keeps dates as strings; PyYAML would make objects of them.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        return _HugeNumber(node.value) if len(node.value) > _LONGEST_NUMBER else super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_WITHOUT_DOT, list("-+0123456789"))


def _items(documents: list[Any]) -> Iterator[Any]:
    """The documents, and in place of a list, as `kubectl get -o yaml` writes it, what is in it."""
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
            yield from document["items"]
        else:
            yield document


def _foreign(document: Any) -> bool:
    """Whether a document is some other resource that may stand beside an experiment."""
    if not isinstance(document, dict) or document.get("kind") == KIND:
        return False
    version = document.get("apiVersion")
    return isinstance(version, str) and not version.startswith(API_GROUP)


def _not_ours(document: Any) -> list[SpecError]:
    """Problems that make all further ones pointless."""
    if not isinstance(document, dict):
        return [SpecError("is not an experiment", value=document, allowed=f"a mapping that begins with apiVersion: {API_VERSION}")]
    errors = []
    for field, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = document.get(field)
        if found is None:
            errors.append(SpecError("is required", field=field, allowed=wanted, next_step=f"Add {field}: {wanted}"))
        elif found != wanted:
            errors.append(
                SpecError("is not known here", field=field, value=found, allowed=wanted, next_step=suggestion(str(found), [wanted]))
            )
    return errors


def _odd_values(document: Any) -> Iterator[SpecError]:
    """What YAML can say and JSON or the API server cannot: empty values, odd keys, objects, half characters, endless aliases."""
    left = _MOST_VALUES
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while stack:
        place, value = stack.pop()
        left -= 1
        if left < 0 or len(place) > _DEEPEST:
            yield SpecError("expands to too many values", next_step="Write it without YAML aliases")
            return
        if isinstance(value, dict):
            items: list[tuple[Any, Any]] = list(value.items())
        elif isinstance(value, list):
            items = list(enumerate(value))
        else:
            items = []
            if value is None and "metadata" not in place[:-1] and place[:1] != ("status",):
                yield no_value(place, TransferExperiment)
            elif isinstance(value, _HugeNumber):
                yield SpecError(
                    "is too large a number", field=field_path(place), value=value, next_step="Shorten it, or write it in quotes"
                )
            elif isinstance(value, str) and _has_half_a_character(value):
                yield SpecError(_HALF, field=field_path(place), value=value, next_step=_WHOLE)
            elif value is not None and not isinstance(value, (str, int, float, bool)):
                yield SpecError("is not a plain value", field=field_path(place), value=value, next_step="Write it as text in quotes")
        for key, item in reversed(items):
            if isinstance(key, str) and _has_half_a_character(key):
                yield SpecError(f"a name in it {_HALF}", field=field_path(place), value=key, next_step=_WHOLE)
            elif isinstance(value, dict) and (not isinstance(key, str) or isinstance(key, _HugeNumber)):
                yield SpecError(
                    "is not a field name",
                    field=field_path(place),
                    value=key,
                    next_step=f'Write it in quotes if it is one: "{shorten(key)}"',
                )
            stack.append(((*place, key if isinstance(key, (str, int)) else str(key)), item))


_HALF = "holds half of a character (a surrogate of UTF-16)"
_WHOLE = "Write the character itself, or both halves of its escape"


def _has_half_a_character(text: str) -> bool:
    """Whether an escape such as \\ud83d stands there without its other half; both together are how JSON writes an emoji."""
    try:
        text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return True
    return False


def _prefixed(prefix: str, problem: TransferError) -> TransferError:
    if not prefix:
        return problem
    return SpecError(
        prefix + problem.problem, field=problem.field, value=problem.value, allowed=problem.allowed, next_step=problem.next_step
    )
