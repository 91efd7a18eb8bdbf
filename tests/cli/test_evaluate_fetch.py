"""`transfer evaluate fetch` against a hub on this machine: what is fetched, what is not fetched again, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data_hub import COMMIT, DataHub, serve
from transfer_api.errors import DataError, ExitCode
from transfer_cli.main import main
from transfer_evaluator.judge.exam import exam_files
from transfer_evaluator.mirror import RAW, Mirror, RepositoryFile

NAME = "cambridgeltl/xcopa"
ROW = {"premise": "Hujan turun.", "choice1": "Jalan basah.", "choice2": "Jalan kering.", "question": "effect", "label": 0, "idx": 0}
SPLITS = [{"split": one, "path": f"id/{one}.jsonl"} for one in ("validation", "test")]
FILES = {
    "README.md": f"---\n{json.dumps({'configs': [{'config_name': 'id', 'data_files': SPLITS}]})}\n---\n".encode(),
    "id/validation.jsonl": json.dumps(ROW).encode(),
    "id/test.jsonl": b"\n".join(json.dumps({**ROW, "idx": n, "label": n % 2}).encode() for n in range(4)),
    ".gitattributes": b"* text",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataHub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's library waits between its tries
    with serve() as server:
        server.files[NAME] = dict(FILES)
        server.large = {"id/test.jsonl"}
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def fetch(mirror: Path, *suites: str) -> int:
    return main(["evaluate", "fetch", *(suites or ("xcopa_id",)), "--mirror", str(mirror)])


def test_a_mirror_has_every_file_at_one_commit(hub: DataHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(tmp_path) == ExitCode.COMPLETE
    assert f"{NAME}@{COMMIT[:8]}: 3 files" in capsys.readouterr().out
    mirror = Mirror(tmp_path)
    record = mirror.record(NAME)
    assert record is not None
    assert record["revision"] == COMMIT
    assert set(record["files"]) == set(FILES) - {".gitattributes"}
    assert {str(path.relative_to(tmp_path / NAME)) for path in (tmp_path / NAME).rglob("*") if path.is_file()} == set(record["files"])
    assert mirror.place(NAME) == tmp_path / NAME

    hub.sent.clear()
    hub.commit = "0" * 40
    assert fetch(tmp_path) == ExitCode.COMPLETE
    assert "all there already" in capsys.readouterr().out
    assert not hub.sent, "what is there is not fetched again, whatever is newest by now"


def test_only_what_is_missing_or_damaged_is_fetched(hub: DataHub, tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / NAME / "id/validation.jsonl").unlink()
    damaged = tmp_path / NAME / "id/test.jsonl"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    hub.sent.clear()
    assert fetch(tmp_path) == ExitCode.COMPLETE
    assert sorted(hub.sent) == ["id/test.jsonl", "id/validation.jsonl"]
    assert damaged.read_bytes() == FILES["id/test.jsonl"]


def test_an_interrupted_fetch_is_known_and_goes_on(hub: DataHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = hub.files[NAME].pop("id/test.jsonl")
    hub.files[NAME]["id/test.jsonl"] = whole
    hub.large.clear()
    from tests.support import data_hub

    send = data_hub._Answers.do_GET

    def breaks(self: data_hub._Answers) -> None:
        if self.path.endswith("id/test.jsonl"):
            return self._answer(b"{}", 503)
        return send(self)

    data_hub._Answers.do_GET = data_hub._Answers.do_HEAD = breaks  # type: ignore[method-assign]
    try:
        assert fetch(tmp_path) == ExitCode.REFUSED
    finally:
        data_hub._Answers.do_GET = data_hub._Answers.do_HEAD = send  # type: ignore[method-assign]
    told = capsys.readouterr().err
    assert NAME in told
    assert "Try again; what was fetched is kept" in told
    with pytest.raises(DataError, match=rf"lacks 1 files of {NAME}: id/test.jsonl"):
        Mirror(tmp_path).place(NAME)
    assert fetch(tmp_path) == ExitCode.COMPLETE
    assert not Mirror(tmp_path).missing(NAME)


def test_a_data_set_that_the_hub_does_not_have_is_named(hub: DataHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(tmp_path, "gaokao-bench") == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert "SUITE: cannot be fetched from the hub (answer 404)" in told
    assert "RUCAIBox/gaokao-bench" in told
    assert not hub.sent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "--mirror", "m"], "SUITE: no suite is named"),
        (["fetch", "mmlu"], "--mirror: no folder is named"),
        (["fetch", "xcopa", "--languages", "de", "--mirror", "m"], "has no questions in that language (got 'xcopa_de')"),
        (["a", "b", "--suites", "mmlu"], "MODEL: are several models"),
    ],
)
def test_what_is_missing_of_the_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == ExitCode.REFUSED
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_of_a_repository_are_fetched_once_at_the_commit_that_is_asked_for(
    hub: DataHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, files = "OpenLMLab/GAOKAO-Bench", list(exam_files().values())
    hub.files[name] = {file.path: json.dumps({"example": [file.path]}).encode() for file in files}
    address = RepositoryFile.address.fget  # type: ignore[attr-defined]
    of_the_hub = f"{hub.address}/datasets/{name}/resolve"
    monkeypatch.setattr(RepositoryFile, "address", property(lambda one: address(one).replace(f"{RAW}/{name}", of_the_hub)))
    broken = files[3].path
    whole = hub.files[name].pop(broken)
    assert fetch(tmp_path, "gaokao-bench_open") == ExitCode.REFUSED
    assert "SUITE: cannot be fetched from the hub (answer 404)" in capsys.readouterr().err
    hub.files[name][broken] = whole
    hub.sent.clear()
    assert fetch(tmp_path, "gaokao-bench_open") == ExitCode.COMPLETE
    assert f"{name}@6dbb24f8: 14 files, 0.0 MB, 11 fetched" in capsys.readouterr().out
    assert len(hub.sent) == 11
    assert [Mirror(tmp_path).file(file).read_bytes() for file in files] == [hub.files[name][file.path] for file in files]

    (tmp_path / name / broken).write_bytes(whole[::-1])
    hub.sent.clear()
    assert fetch(tmp_path, "gaokao-bench_open") == ExitCode.COMPLETE
    assert hub.sent == [broken], "what is damaged is fetched again"


def test_a_suite_runs_from_what_was_fetched_when_the_hub_is_gone(
    hub: DataHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.in_process import InProcessBackend
    from tests.support.tiny import save_tiny_model
    from transfer_cli import run as runner

    assert fetch(tmp_path / "mirror") == ExitCode.COMPLETE
    hub.status = 500
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(runner, "LocalBackend", InProcessBackend)
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "model")
    assert main(["evaluate", "model", "--suites", "xcopa", "--languages", "id", "--mirror", "mirror", "--output", "out"]) == 0
    (score,) = [one for one in json.loads((tmp_path / "out" / "results.json").read_text())["scores"] if one["metric"] == "acc"]
    assert (score["suite"], score["language"], score["items"]) == ("xcopa_id", "id", 4)
    assert f"data {NAME}@{COMMIT[:8]}" in score["harness"]
