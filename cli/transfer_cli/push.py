"""`transfer push`: hands the model of a finished run on, to a folder or to a repository of a model hub.

What goes: `model/` as the run left it, weights, tokenizer and card, and with LoRA the adapter beside it as `adapter/`. A folder is only
filled where it is empty or an earlier push filled it, and what others put there stays; on a hub a push is one commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
from pathlib import Path

from transfer_api.errors import ArtifactError, ExitCode, SpecError
from transfer_api.status import Phase
from transfer_cli.outputs import ADAPTER, MODEL, MODEL_KINDS, Written, read_status
from transfer_cli.status import output_of
from transfer_pod.artifact import is_temporary, sha256, storage_errors, write_atomically

HUB = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*")
PUSHED = ".pushed.json"
"""In a folder: which files a push has put there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("name", metavar="RUN", help="experiment name or file, or the folder of a run")
    parser.add_argument("target", metavar="TARGET", help="hub:OWNER/NAME, or a folder")
    parser.add_argument("--public", action="store_true", help="make a new repository public; an existing one stays as it is")
    parser.add_argument("--branch", help="branch of the repository to commit to (default: main)")


def run(options: argparse.Namespace) -> int:
    """Pushes and prints where to. Exit codes: 0 done, 2 nothing to push, or the target cannot take it, 11 the model is not whole."""
    if "://" in options.target:
        raise SpecError(
            "is an address, and only a hub or a folder takes a model", field="TARGET", value=options.target,
            allowed="hub:OWNER/NAME, or a folder", next_step="Push to a folder, and copy that with the tool of the store",
        )  # fmt: skip
    output = output_of(options.name)
    files = pushable(output, options.name)
    if options.target.startswith(HUB):
        where = push_to_hub(files, options.target.removeprefix(HUB), public=options.public, branch=options.branch)
    else:
        if options.public or options.branch:
            raise SpecError("is for a hub", field="--branch" if options.branch else "--public", next_step="Write the target hub:OWNER/NAME")
        target = Path(options.target)
        if output.resolve() in (target.resolve(), *target.resolve().parents):
            raise SpecError("lies in the run's own folder", field="TARGET", value=options.target, next_step="Choose a folder outside of it")
        where = str(push_to_folder(files, target))
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files.values()) / 1e9:.2f} GB: {where}")
    return ExitCode.COMPLETE


def pushable(output: Path, name: str) -> dict[str, Path]:
    """The files of a finished run by the path that they get at the target.

    Raises:
        SpecError: no such run, not complete, or it made no model.
        ArtifactError: its model was removed or is not whole.
    """
    status = read_status(output)
    if status is None or status.phase is not Phase.COMPLETE:
        raise SpecError(
            "has no run here" if status is None else f"is not complete ({status.phase})", field="RUN", value=name,
            next_step=f"Looked for a finished run in {output}",
        )  # fmt: skip
    if not any(stage.kind in MODEL_KINDS for stage in status.stages):
        raise SpecError("only evaluated a model and made none", field="RUN", value=name, next_step="Push the model that it evaluated")
    written = Written.read(output)
    missing = [one for one in written.missing(output) if one.startswith((f"{MODEL}/", f"{ADAPTER}/"))] if written else [MODEL]
    if missing:
        raise ArtifactError(
            f"{output} is not whole: it lacks {', '.join(missing)}" if written else f"{output} was not written to its end",
            next_step=f"`transfer run FILE --output {shlex.quote(str(output))}` of the same file puts there what is missing",
        )
    found = {str(path.relative_to(output / MODEL)): path for path in _files(output / MODEL)}
    if (output / ADAPTER).is_dir():
        found |= {str(path.relative_to(output)): path for path in _files(output / ADAPTER)}
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_temporary(path))


def push_to_folder(files: dict[str, Path], target: Path) -> Path:
    """Copies the files; what an earlier push left there and is no longer of the model goes, and what others put there stays.

    Raises:
        SpecError: the folder holds something else, or a file to be replaced is not as a push left it.
    """
    if target.exists() and not target.is_dir():
        raise SpecError("is not a folder", field="TARGET", value=str(target), next_step="Name a folder, or hub:OWNER/NAME")
    with storage_errors(target, field="TARGET", then="the same command does it again"):
        pushed = _pushed(target)
        if pushed is None and target.exists() and any(target.iterdir()):
            raise SpecError(
                "holds files that no push has put there", field="TARGET", value=str(target), allowed="an empty or a new folder",
                next_step="Choose another one, or empty it",
            )  # fmt: skip
        pushed = pushed or {}
        ours = {name for name, digest in pushed.items() if digest is None or _is_as(target / name, digest)}
        if changed := sorted(name for name in files if name not in ours and os.path.lexists(target / name)):
            raise SpecError(
                f"holds files of the model's names that are not as a push left them: {', '.join(changed)}", field="TARGET",
                value=str(target), next_step="Move them away, or choose another folder",
            )  # fmt: skip
        target.mkdir(parents=True, exist_ok=True)
        # Before anything is copied: a push that is interrupted can be done again.
        _write_pushed(target, {**{name: pushed[name] for name in ours}, **dict.fromkeys(files)})
        for name in ours - files.keys():
            (target / name).unlink(missing_ok=True)
        for name, path in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
        _write_pushed(target, {name: sha256(target / name) for name in files})
    return target


def _pushed(target: Path) -> dict[str, str | None] | None:
    """What a push put into a folder, each file with its digest, or without one while it is copied; None where none has."""
    try:
        found = json.loads((target / PUSHED).read_bytes())
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


def _write_pushed(target: Path, files: dict[str, str | None]) -> None:
    write_atomically(target / PUSHED, json.dumps(files, indent=1))


def _is_as(path: Path, digest: str) -> bool:
    return not os.path.lexists(path) or (path.is_file() and sha256(path) == digest)


def push_to_hub(files: dict[str, Path], repository: str, *, public: bool, branch: str | None) -> str:
    """Makes the repository where there is none and adds the files to it in one commit; returns the commit's address.

    The token is $HF_TOKEN, or that of `hf auth login`; the hub $HF_ENDPOINT, or the public one.

    Raises:
        SpecError: the name is not one, or the hub refuses (no token, no right, no such branch) or does not answer.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise SpecError("is not a repository", field="TARGET", value=f"{HUB}{repository}", allowed="hub:OWNER/NAME")
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Push by transfer-operator", revision=branch)
    except Exception as error:  # the hub's library raises those of its HTTP client too
        answer = getattr(getattr(error, "response", None), "status_code", None)
        words = " ".join(str(error).split())[:300]
        refused = answer is not None and answer < 500
        raise SpecError(
            f"the hub refuses (answer {answer}): {words}" if refused else f"the hub cannot be reached: {words}", field="TARGET",
            value=f"{HUB}{repository}",
            next_step="Set HF_TOKEN to a token that may write there; check owner, name and branch" if refused else "Try again",
        ) from error  # fmt: skip
    return str(commit.commit_url)
