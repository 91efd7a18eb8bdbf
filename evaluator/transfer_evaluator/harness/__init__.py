"""Our scorer as the model `transfer` of lm-evaluation-harness, so that its tasks, prompts and metrics are used as they are.

    python -m transfer_evaluator.harness --model transfer --model_args pretrained=FOLDER,dtype=float32 --tasks arc_easy

is the harness's own command line with this model registered. The harness (0.4.13) reads no entry points, and imports nothing from
`--include_path` before it looks the model's name up; so something must import this package first, which is all the command above
does. In Python the import is enough: `simple_evaluate(model="transfer", model_args=…)`. An evaluation stage uses the same class.

Encoding (how context and continuation are cut, where BOS goes) is the harness's; only the forward passes are ours. Its own
`hf` model must give the same log-likelihoods: tests/evaluator compare them.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from transfer_api.errors import DataError, ModelError, SpecError
from transfer_api.spec import ModelSource, Precision
from transfer_evaluator.generation import MORE_THAN_GREEDY, Prompt, answer
from transfer_evaluator.model import LoadedModel, load_model
from transfer_evaluator.scorer import Begin, Request, TokenScorer, silent
from transfer_pod.model import base_folder

NAME = "transfer"
"""Of the model in the harness's registry."""
MAX_GENERATED = 256
"""Tokens of an answer where the task sets no limit; the harness's default."""
PRECISIONS = {"float32": Precision.FLOAT32, "bfloat16": Precision.BFLOAT16}
ARGUMENTS = ("pretrained", "revision", "dtype", "device", "max_length")
"""What `--model_args` may name."""
OF_BATCHES = ("batch_size", "max_batch_size")
"""What the harness's command line always gives. Batches are made by tokens here, and their size changes no answer."""
GREEDY = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})
"""Settings of an answer that are known here, or that say nothing where the likeliest token is taken."""


@register_model(NAME)
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A causal language model for `lm_eval.evaluator`."""

    def __init__(self, loaded: LoadedModel, scorer: TokenScorer | None = None, begin: Begin = silent) -> None:
        super().__init__()
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.scorer = scorer or TokenScorer(loaded.model)
        self.begin = begin
        self.cut: dict[tuple[str, int], int] = {}
        """Tokens that were cut off the left of a context, by task and number of the item in it."""
        self._device = loaded.device

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> HarnessModel:
        """From `pretrained=FOLDER,dtype=float32,…`; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None) -> HarnessModel:
        """From the arguments of the harness's command line.

        Args:
            arg_dict: `pretrained` (a folder, or a name on the hub with the commit as `revision`), `dtype` (float32 by default, or
                bfloat16), `device`, `max_length` (tokens, where the model is to read less than it could).
            additional_config: `device` again, and sizes of batches, which are not used.

        Raises:
            SpecError: an argument does not exist, or has a value that it cannot have.
            ModelError: the model cannot be loaded.
        """
        given = {**arg_dict, **{name: value for name, value in (additional_config or {}).items() if value is not None}}
        return cls(_load({name: value for name, value in given.items() if name not in OF_BATCHES}))

    @property
    def eot_token_id(self) -> int:
        """EOS of the tokenizer."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a continuation without context."""
        return self.loaded.prefix_token

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which the harness keeps prepared requests."""
        return str(self.loaded.folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is used, for the harness's record."""
        if chat_template:
            self._need_template()
        template: str | None = super().chat_template(chat_template)
        return template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one text; without the system's where the template knows no such role, as in the harness.

        Raises:
            ModelError: the tokenizer has no template.
        """
        from jinja2.exceptions import TemplateError

        self._need_template()

        def text(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
                )
            )

        try:
            return text(chat_history)
        except TemplateError:
            return text([message for message in chat_history if message["role"] != "system"])

    def _need_template(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the tokenizer has no chat template, and the questions are to be asked in a chat", field="spec.model",
                value=str(self.loaded.folder), next_step="Take an instruction-tuned model, or ask without a chat template",
            )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them, but not a second BOS."""
        special: dict[str, bool] = {}
        if add_special_tokens is not None:
            special["add_special_tokens"] = add_special_tokens
        elif string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special["add_special_tokens"] = False
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one."""
        self._asked = requests
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        for request, response in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, response)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        wanted = []
        for asked, (_, context, continuation) in zip(self._asked, requests, strict=True):
            surplus = _surplus(context, continuation, self.loaded.positions, asked)
            self._count(asked, surplus)
            wanted.append(Request(tuple(itertools.islice(context, surplus, None)), tuple(continuation)))
        scores = self.scorer.score(wanted, self.begin(len(wanted)))
        return [(score.log_probability, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text, in windows cut by the harness."""
        owners: list[int] = []
        wanted: list[Request] = []
        for index, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.loaded.positions, context_len=1,
            )  # fmt: skip
            for context, continuation in map(make_disjoint_window, cut):
                owners.append(index)
                wanted.append(Request(tuple(context), tuple(continuation)))
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self.scorer.score(wanted, self.begin(len(wanted))), strict=True):
            totals[owner] += score.log_probability
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, cut at the first stop string.

        Raises:
            SpecError: the task asks for sampling or beams, or for more tokens than the model has positions.
        """
        prompts = [self._prompt(request) for request in requests]
        answers = answer(self.loaded, prompts, self.begin(len(prompts)), scorer=self.scorer)
        for request, text in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return answers

    def _prompt(self, request: Any) -> Prompt:
        context, settings = request.args
        wanted = normalize_gen_kwargs(settings, MAX_GENERATED)
        if wanted["do_sample"] or any(wanted[name] != MORE_THAN_GREEDY.get(name) for name in wanted.keys() - GREEDY):
            raise SpecError(
                "a task asks for answers that are not greedy", field="spec.evaluation.suites", value=settings,
                allowed="tasks with log-likelihoods or greedy answers: others are not repeatable, or not what other models were given",
                next_step="Set do_sample: false in the task's generation_kwargs, and leave out what is not among "
                f"{', '.join(sorted(GREEDY))}",
            )  # fmt: skip
        limit, until = int(wanted["max_gen_toks"]), wanted["until"]
        room = self.loaded.positions - limit
        if room <= 0 or limit <= 0:
            raise SpecError(
                "a task asks for answers that leave no room for a question", field="spec.evaluation.suites",
                value=f"max_gen_toks: {limit}", allowed=f"1 to {self.loaded.positions - 1} tokens",
                next_step="Set max_gen_toks in the task's generation_kwargs",
            )  # fmt: skip
        tokens = self.tok_encode(context)
        self._count(request, len(tokens) - room)
        return Prompt(tuple(tokens[-room:]), limit, tuple(until))

    def _count(self, request: Any, surplus: int) -> None:
        if surplus > 0:
            place = (request.task_name, request.doc_id)
            self.cut[place] = max(surplus, self.cut.get(place, 0))


def _surplus(context: Sequence[int], continuation: Sequence[int], positions: int, asked: Any) -> int:
    """Tokens by which a request is too long. They are cut from the left, as the harness does it.

    Raises:
        DataError: the continuation alone does not fit, or there is none.
    """
    if not 0 < len(continuation) <= positions:
        raise DataError(
            f"an answer of the task {asked.task_name} has no tokens, or more than the model has positions", field="spec.evaluation.suites",
            value=f"{len(continuation)} tokens: {asked.args[1]}", allowed=f"1 to {positions} tokens",
            next_step=f"Shorten or remove item {asked.doc_id} of the task",
        )  # fmt: skip
    return max(0, len(context) + len(continuation) - positions - 1)


def _load(arguments: Mapping[str, Any]) -> LoadedModel:
    for name in arguments:
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=0.5)
            raise SpecError(
                f"the model {NAME} has no argument {name}", field="--model_args", value=f"{name}={arguments[name]}",
                allowed=", ".join(ARGUMENTS), next_step=f"Did you mean {near[0]}?" if near else "Leave it out",
            )  # fmt: skip
    dtype = str(arguments.get("dtype", "float32"))
    if dtype not in PRECISIONS:
        raise SpecError(
            "cannot be computed in this number format", field="--model_args", value=f"dtype={dtype}", allowed=" or ".join(PRECISIONS),
            next_step="Name one of them",
        )  # fmt: skip
    loaded = load_model(_folder(arguments), PRECISIONS[dtype], _device(arguments.get("device")))
    return _shortened(loaded, arguments.get("max_length"))


def _folder(arguments: Mapping[str, Any]) -> Path:
    name, revision = str(arguments.get("pretrained") or ""), arguments.get("revision")
    source = {"path": name} if Path(name).is_dir() or not revision else {"name": name, "revision": str(revision)}
    try:
        return base_folder(ModelSource.model_validate(source), lambda path, field: Path(path))
    except ValueError as error:
        raise SpecError(
            f"names no model: {error}", field="--model_args", value=f"pretrained={name}",
            allowed="a folder, or a name on the hub with its commit as revision", next_step="Correct it",
        ) from error  # fmt: skip


def _device(name: Any) -> torch.device | None:
    """None for the best there is: the harness's command line says cuda:0 of its own accord, whether there is a GPU or not."""
    try:
        device = torch.device(name) if name is not None else None
    except RuntimeError as error:
        raise SpecError("is no device", field="--device", value=name, allowed="cpu, cuda, cuda:1, …", next_step="Correct it") from error
    return None if device is None or (device.type == "cuda" and not torch.cuda.is_available()) else device


def _shortened(loaded: LoadedModel, length: Any) -> LoadedModel:
    if length is None:
        return loaded
    if not isinstance(length, int) or not 1 < length <= loaded.positions:
        raise SpecError(
            "is not a length this model can read", field="--model_args", value=f"max_length={length}",
            allowed=f"2 to {loaded.positions}", next_step="Correct it, or leave it out",
        )  # fmt: skip
    return dataclasses.replace(loaded, positions=length)
