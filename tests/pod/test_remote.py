"""Texts by address, read from a real S3 server (versitygw) and a real web server."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from transfer_api.errors import DataError
from transfer_api.spec import ModelSource, TextSource
from transfer_api.stage import DatasetParameters, StageKind, StagePlan
from transfer_pod import remote
from transfer_pod.context import PodContext
from transfer_pod.documents import check_source, find_data, iter_documents, iter_part, parts, stamp
from transfer_pod.hub import HubUnreachableError

ROOT = Path(__file__).parents[2]
FIELD = "spec.pretraining.mixture[0]"
KEY, SECRET = "AKIAEXAMPLE", "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("buckets")
    (root / "texts" / "id" / "deep").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """Address of an S3 server whose buckets are the folders of `folder`."""
    found = subprocess.run([str(ROOT / "hack" / "cluster" / "tool"), "versitygw"], capture_output=True, text=True, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    command = [found.stdout.strip(), "--port", f"127.0.0.1:{port}", "posix", "--nometa", str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
                assert process.poll() is None, f"versitygw ended with {process.returncode}"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    remote._connect.cache_clear()


@pytest.fixture
def context(tmp_path: Path) -> PodContext:
    parameters = DatasetParameters(model=ModelSource(path="m"), sequence_length=8, seed=0).model_dump(mode="json", by_alias=True)
    return PodContext(stage=StagePlan(name="d", kind=StageKind.DATASET, key="k", parameters=parameters), storage=tmp_path, pod="p")


def documents(context: PodContext, address: str) -> list[str]:
    source = TextSource(path=address)
    whole = list(iter_documents(source, context, FIELD))
    pieces = parts(source, context, FIELD, 40)
    assert [text for part in pieces for text in iter_part(source, part, FIELD)] == whole
    assert all(stamp(part.file)[0] > 0 for part in pieces)
    return whole


@pytest.mark.usefixtures("s3")
def test_every_format_is_read_from_a_bucket(folder: Path, context: PodContext) -> None:
    texts = ["Satu.", "Dua.\nTiga.", "é" * 20]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    bucket = folder / "texts" / "id"
    (bucket / "a.jsonl").write_bytes(lines)
    (bucket / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(bucket / "c.jsonl.zst", compression="zstd") as stream:
        stream.write(lines)
    parquet.write_table(pa.Table.from_pylist([{"text": text} for text in texts]), bucket / "d.parquet", row_group_size=1)
    (bucket / "deep" / "e.txt").write_text("\n\n".join(texts))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "deep/e.txt"):
        assert documents(context, f"s3://texts/id/{name}") == texts, name
    assert documents(context, "s3://texts/id/*.jsonl*") == texts * 3
    assert documents(context, "s3://texts/**/*.txt") == texts
    assert documents(context, "s3://texts/id/?.parquet") == texts
    with pytest.raises(DataError, match="no such file"):
        documents(context, "s3://texts/id/*.txt")
    check_source(find_data("s3://texts/id/*", (), FIELD), "text", FIELD)  # type: ignore[arg-type]


@pytest.mark.usefixtures("s3")
def test_an_error_names_address_and_line(folder: Path, context: PodContext) -> None:
    (folder / "texts" / "bad.jsonl").write_text('{"text": "a"}\n' * 9 + "no\n")
    with pytest.raises(DataError, match="line 10 is not JSON") as caught:
        documents(context, "s3://texts/bad.jsonl")
    assert (caught.value.field, caught.value.value) == (f"{FIELD}.path", "s3://texts/bad.jsonl")


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("address", ["s3://texts/nothing.jsonl", "s3://no-such-bucket/a.jsonl", "s3://no-such-bucket/*.jsonl"])
def test_what_is_not_there_is_refused(context: PodContext, address: str) -> None:
    with pytest.raises(DataError, match=r"mixture\[0\]\.path") as caught:
        documents(context, address)
    assert "spec.dataSecret" in str(caught.value.next_step)


@pytest.mark.usefixtures("s3")
def test_wrong_credentials_are_refused_and_never_told(folder: Path, context: PodContext, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "texts" / "id" / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-somebody")
    remote._connect.cache_clear()
    with pytest.raises(DataError, match="refused by the server") as caught:
        documents(context, "s3://texts/id/a.jsonl")
    chain = repr(caught.value) + str(caught.value) + repr(caught.value.__cause__)
    assert "wrong-secret" not in chain
    assert KEY not in chain


def test_a_server_that_does_not_answer_is_tried_again(context: PodContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    remote._connect.cache_clear()
    with pytest.raises(HubUnreachableError, match="tried again"):
        documents(context, "s3://texts/id/a.jsonl")


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("b/*.jsonl", ["b/a.jsonl", "b/.jsonl"], ["b/c/a.jsonl", "b/a.jsonl.gz", "b/ajsonl"]),
        ("b/**/*.gz", ["b/a.gz", "b/c/d/a.gz"], ["b/a.gzx", "a.gz"]),
        ("b/part-[0-9]?.txt", ["b/part-1x.txt"], ["b/part-x1.txt", "b/part-1/.txt"]),
        ("b/[!a]+(1).txt", ["b/b+(1).txt"], ["b/a+(1).txt", "b/bb(1).txt"]),
    ],
)
def test_patterns_stop_at_slashes(pattern: str, matches: list[str], others: list[str]) -> None:
    assert [bool(re.fullmatch(remote._expression(pattern), place)) for place in [*matches, *others]] == [True] * len(matches) + [
        False
    ] * len(others)


def test_other_addresses_are_refused_with_the_kinds_there_are(context: PodContext) -> None:
    with pytest.raises(DataError, match="s3://, gs://, https://"):
        documents(context, "ftp://host/a.jsonl")
    with pytest.raises(DataError, match="cannot list its files"):
        documents(context, "https://host/*.jsonl")
