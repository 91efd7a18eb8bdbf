"""Finds the folder of the model that a stage starts from, and refuses what cannot be loaded safely.

Only safetensors are read, code of a repository is never run, and nothing here imports torch: `transfer run` asks the
same questions before it starts anything.
"""

from __future__ import annotations

import ast
import difflib
import errno
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transfer_api.errors import ArtifactError, ModelError, SpecError
from transfer_api.spec import Lora, ModelSource
from transfer_api.stage import StageKind, snapshot_key
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_pod.hub import hub_error

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Says which shard has which tensor, where the weights are in several files."""
_CAUSAL_LIST = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def model_folder(context: PodContext) -> Path:
    """The model of a stage: that of its input `model`, else the base model.

    Raises:
        ModelError, DataError: the base model is missing or cannot be used.
        HubUnreachableError: the hub does not answer now.
        ArtifactError: the input is incomplete or altered.
    """
    key = context.stage.inputs.get("model")
    if key is not None:
        return _of_artifact(context, key)
    return base_folder(ModelSource.model_validate(context.stage.parameters["model"]), context.find)


def base_folder(source: ModelSource, find: Callable[[str, str], Path]) -> Path:
    """A base model: the folder that `find` makes of its path and the name of the field, or fetched from the hub.

    Raises:
        ModelError, DataError: it is missing or cannot be used.
        HubUnreachableError: the hub does not answer now.
    """
    if source.path is not None:
        return check_model_folder(find(source.path, "spec.model.path"), "spec.model.path")
    return _from_hub(source)


def _of_artifact(context: PodContext, key: str) -> Path:
    store = ArtifactStore(context.storage)
    if (tokens := context.stage.snapshot) is not None:
        return _of_snapshot(store, key, tokens)
    for kind in (StageKind.VOCABULARY, StageKind.PRETRAINING, StageKind.INSTRUCTION_TUNING):
        if store.find(kind, key) is not None:
            return store.open(kind, key, part="model")
    raise ModelError(f"the stage that makes this stage's model has left no artifact {key}", next_step="Run the experiment again")


def _of_snapshot(store: ArtifactStore, key: str, tokens: int) -> Path:
    snapshot = snapshot_key(key, tokens)
    if store.find(StageKind.PRETRAINING, snapshot) is None:
        raise ArtifactError(
            f"{store.path(StageKind.PRETRAINING, snapshot)}, the model after {tokens} tokens, is not there",
            next_step=f"Remove {store.path(StageKind.PRETRAINING, key)} to have the training made again",
        )
    return store.open(StageKind.PRETRAINING, snapshot, part="model")


def _from_hub(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download

    assert source.name is not None
    try:
        folder = snapshot_download(
            source.name,
            revision=source.revision,
            token=os.environ.get("HF_TOKEN"),
            ignore_patterns=[*PICKLES, "*.gguf", "*.h5", "*.msgpack", "original/*"],
        )
    except Exception as error:  # each HTTP client of the hub's library has errors of its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise  # of this machine
        way_out = "Check name and revision; a gated repository needs spec.model.tokenSecret (HF_TOKEN on one machine)"
        field = "spec.model.revision" if type(error).__name__ == "RevisionNotFoundError" else "spec.model.name"
        value = source.revision if field == "spec.model.revision" and source.revision else source.name
        raise hub_error(error, ModelError, field, value, way_out) from error
    return check_model_folder(Path(folder), "spec.model.name")


def check_model_folder(folder: Path, field: str = "spec.model.path") -> Path:
    """Returns the folder when a plain transformers model can be loaded from it without running code.

    Raises:
        ModelError: no config.json, no tokenizer or a broken one, weights missing, cut short, or only as pickles.
    """
    if not folder.is_dir():
        raise ModelError("is not a folder", field=field, value=str(folder), next_step="Give the folder that holds config.json")
    config = read_config(folder, field)
    if "auto_map" in config:
        raise ModelError(
            "needs code of its own to load, which is not run here", field=field, value=str(folder),
            next_step="Use a model whose class is part of transformers",
        )  # fmt: skip
    _check_architecture(folder, config, field)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            "has no tokenizer", field=field, value=str(folder), allowed=" or ".join(TOKENIZER_FILES),
            next_step="Save the tokenizer into the same folder: AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        )  # fmt: skip
    _check_tokenizer(folder / TOKENIZER_FILES[0], field)
    weights = weight_files(folder)
    if not weights:
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        problem = f"has its weights as a pickle ({pickles[0]}), which can run code when read" if pickles else "has no weights"
        raise ModelError(
            problem, field=field, value=str(folder), allowed="*.safetensors",
            next_step="Load it once where you trust it and save it again: model.save_pretrained(folder)",
        )  # fmt: skip
    _check_shards(folder, config, field)
    for path in weights:
        safetensors_header(path, field)
    return folder


def _check_architecture(folder: Path, config: Mapping[str, Any], field: str) -> None:
    """Whether transformers has a causal language model of this type. It is looked for again when the model is loaded."""
    kind, known = config.get("model_type"), causal_types()
    if not known or kind in known:
        return
    near = difflib.get_close_matches(str(kind), known, n=1)
    problem = "config.json has no model_type" if kind is None else "has a model_type that is no causal language model of transformers"
    raise ModelError(
        problem, field=field, value=kind if kind is not None else str(folder), allowed=f"one of the {len(known)} that transformers "
        f"{importlib.metadata.version('transformers')} knows, such as llama, qwen3 or gemma",
        next_step=f"Did you mean {near[0]}?" if near else "Use another model",
    )  # fmt: skip


@functools.cache
def causal_types() -> frozenset[str]:
    """Types of config.json that AutoModelForCausalLM loads; none where another version of transformers keeps its list elsewhere.

    Read out of its source, which takes 25 ms: to import it takes two seconds, and torch with it.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return frozenset()
    try:
        tree = ast.parse((Path(found.origin).parent / "models/auto/modeling_auto.py").read_bytes())
        lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _CAUSAL_LIST]
        return frozenset(name for each in lists if isinstance(each, ast.Call) for name, _ in ast.literal_eval(each.args[0]))
    except (OSError, SyntaxError, ValueError, TypeError, IndexError):
        return frozenset()


def _check_shards(folder: Path, config: Mapping[str, Any], field: str) -> None:
    """Whether the files are there that transformers reads: model.safetensors, else each that the index names."""
    if (folder / WEIGHTS).is_file() or "transformers_weights" in config:
        return
    if not (folder / INDEX).is_file():
        raise ModelError(
            "has neither one file of weights nor an index of several", field=field, value=str(folder), allowed=f"{WEIGHTS} or {INDEX}",
            next_step="Fetch what is missing",
        )  # fmt: skip
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        absent = sorted(str(shard) for shard in shards if not (folder / shard).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"has a broken {INDEX}: {type(error).__name__}: {error}", field=field, value=str(folder), next_step="Fetch it again"
        ) from error
    if absent:
        others = f" and {len(absent) - 1} more files" if len(absent) > 1 else ""
        raise ModelError(
            f"lacks {absent[0]}{others}, which {INDEX} names", field=field, value=str(folder), next_step="Fetch what is missing"
        )


def check_whole(info: Mapping[str, Any], folder: Path) -> None:
    """Refuses weights of which some are missing: transformers would make them up, at random, and only log it.

    Args:
        info: what `from_pretrained` tells with `output_loading_info`.
        folder: where the weights are.

    Raises:
        ModelError: names some of them.
    """
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"lacks {len(missing)} weights, among them {', '.join(missing[:3])}", field="spec.model", value=str(folder),
            next_step="Fetch it again; a file of weights was cut short or left out",
        )  # fmt: skip


def first_sentence(error: Exception) -> str:
    """What is wrong; transformers goes on with advice, such as to install another version, which is not ours to give."""
    return re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0].removesuffix(".")


def check_lora(smallest: Mapping[str, int], lora: Lora, field: str) -> None:
    """Refuses adapters that the model has no place for.

    Args:
        smallest: last part of the name of each linear module, such as q_proj, to the smaller side of its matrix (the smallest of all
            layers).
        lora: what is wanted.
        field: where it is written, such as spec.pretraining.lora.

    Raises:
        SpecError: a target names no linear module (the message lists those there are), or the rank is larger than a matrix.
    """
    last = {target: target.rpartition(".")[2] for target in lora.targets}
    if missing := [target for target, name in last.items() if name not in smallest]:
        raise SpecError(
            "no linear module of this name in the model", field=f"{field}.targets", value=missing[0],
            allowed=", ".join(sorted(smallest)), next_step="Choose among these",
        )  # fmt: skip
    side, target = min((smallest[name], target) for target, name in last.items())
    if lora.rank > side:
        raise SpecError(
            f"is larger than a matrix of the model: {target} has a side of {side}", field=f"{field}.rank", value=lora.rank,
            allowed=f"at most {side}", next_step="Lower it; with the rank of the matrix itself, method: Full costs less",
        )  # fmt: skip


def linear_sides(folder: Path) -> dict[str, int]:
    """What `check_lora` asks for, from the headers of the weights alone: matrices in layers, without embeddings and head."""
    sides: dict[str, int] = {}
    for path in weight_files(folder):
        for name, entry in safetensors_header(path).items():
            parts = name.split(".")
            in_layer = len(parts) > 2 and parts[-1] == "weight" and any(part.isdigit() for part in parts)
            if in_layer and len(entry["shape"]) == 2:
                sides[parts[-2]] = min(*entry["shape"], sides.get(parts[-2], max(entry["shape"])))
    return sides


def _check_tokenizer(file: Path, field: str) -> None:
    """Whether tokenizer.json, where there is one, is whole: an object with a model."""
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise ValueError("no model in it")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"has a broken {file.name}: {error}", field=field, value=str(file),
            next_step="Fetch it again, or save it again: AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        ) from error  # fmt: skip


def read_config(folder: Path, field: str = "spec.model.path") -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ModelError: missing or not JSON.
    """
    try:
        path = folder / "config.json"
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"has no readable config.json: {error}", field=field, value=str(folder), next_step="Give the folder of a transformers model"
        ) from error
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; a pipe of such a name is none, and to read it would wait for ever."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def safetensors_header(path: Path, field: str = "spec.model.path") -> dict[str, Any]:
    """Names, types and shapes of the tensors in a safetensors file, without reading the tensors.

    Raises:
        ModelError: the file is cut short or not safetensors.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(size, 100_000_000):
                raise ValueError("no header")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes instead of {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path.name} is not a complete safetensors file ({error})", field=field, value=str(path.parent), next_step="Fetch it again"
        ) from error
    return header
