"""What an error of the hub means: something to correct in the experiment, or a bad day of the network.

    401, 403, 404, no such revision, any other 4xx       the experiment cannot work as written: code 10, no second try
    408, 429, 5xx, time-outs, no connection              it may work in a minute: a crash, tried again on the application budget

Libraries wrap the hub's answer in errors of their own, so the whole chain of causes is searched for the answer's status.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from transfer_api.errors import DataError, TransferError

_COME_AND_GO = (408, 425, 429)
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


class HubUnreachableError(Exception):
    """The hub does not answer, or says that it cannot now. A crash on purpose: the operator tries again."""


def newest_commit(name: str, field: str) -> str | None:
    """The commit that a data set without a revision stands for now; None where the network is not to be used: nothing moves then.

    Raises:
        DataError: there is no such data set, or it is not for this token.
        HubUnreachableError: the hub does not answer.
    """
    from huggingface_hub import HfApi

    try:
        commit: str | None = HfApi().dataset_info(name, token=os.environ.get("HF_TOKEN")).sha
    except Exception as error:  # of the library and of its HTTP client
        if _offline(error):
            return None
        raise hub_error(error, DataError, field, name, "Check its name; a gated data set needs HF_TOKEN") from error
    return commit


def hub_error(error: BaseException, kind: type[TransferError], field: str, name: str, next_step: str) -> Exception:
    """What to raise for an error of a hub library.

    Args:
        error: what the library raised.
        kind: the error for what a person has to correct.
        field: field of the experiment that names the repository.
        name: of the repository.
        next_step: what to do about it.
    """
    status = next((code for cause in _causes(error) if (code := _status(cause)) is not None), None)
    words = _shortened(error)
    if status is None and _offline(error):
        return kind("is not here, and the network is not to be used", field=field, value=name, next_step=next_step)
    if status is not None and 400 <= status < 500 and status not in _COME_AND_GO:
        return kind(f"cannot be fetched from the hub (answer {status}): {words}", field=field, value=name, next_step=next_step)
    if status is None and not any(_of_the_network(cause) for cause in _causes(error)):
        return kind(f"cannot be fetched from the hub: {words}", field=field, value=name, next_step=next_step)
    said = f"it answered {status}" if status is not None else words
    return HubUnreachableError(f"{field}: the hub cannot be reached for {name} ({said}); tried again")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the latest first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _status(error: BaseException) -> int | None:
    """Status of the HTTP answer that an error carries."""
    for holder in (getattr(error, "response", None), error):
        for name in ("status_code", "status"):
            code = getattr(holder, name, None)
            if isinstance(code, int) and 100 <= code < 600:
                return code
    return None


def _of_the_network(error: BaseException) -> bool:
    """By name, since each hub library brings an HTTP client of its own."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(names & {"TransportError", "ClientError", "RequestException"})


def _offline(error: BaseException) -> bool:
    asked = any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)
    return asked or any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in _causes(error))


def _shortened(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
