"""Which model folders are accepted, and what is said of the others."""

import json
import os
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny_model
from transfer_api.errors import ModelError
from transfer_pod.model import check_model_folder, safetensors_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def shards(folder: Path, index: str | None = None) -> None:
    """The weights as the first of two shards, the second of which is not there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    named = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(index or json.dumps({"metadata": {}, "weight_map": named}))


def no_index(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def own_code(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))


def test_a_complete_model_is_accepted(folder: Path) -> None:
    assert check_model_folder(folder) == folder
    assert any(name.endswith("embed_tokens.weight") for name in safetensors_header(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda f: (f / "config.json").unlink(), "no readable config.json", id="no config"),
        pytest.param(lambda f: (f / "config.json").write_text("{"), "no readable config.json", id="config cut short"),
        pytest.param(lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer", id="no tokenizer"),
        pytest.param(lambda f: (f / "model.safetensors").unlink(), "has no weights", id="no weights"),
        pytest.param(only_pickle, r"as a pickle \(pytorch_model.bin\)", id="a pickle instead of safetensors"),
        pytest.param(cut_weights, "not a complete safetensors file", id="weights cut short"),
        pytest.param(lambda f: (f / "model.safetensors").write_bytes(b"\x80"), "not a complete safetensors file", id="weights are junk"),
        pytest.param(lambda f: pipe(f / "config.json"), "no readable config.json: it is not a file", id="config is a pipe"),
        pytest.param(lambda f: pipe(f / "model.safetensors"), "has no weights", id="weights are a pipe"),
        pytest.param(shards, "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names", id="a shard is absent"),
        pytest.param(lambda f: shards(f, '{"weight_map": ['), "broken model.safetensors.index.json", id="index cut short"),
        pytest.param(lambda f: shards(f, '{"weight_map": {"a": 1}}'), "broken model.safetensors.index.json", id="index of something else"),
        pytest.param(no_index, "neither one file of weights nor an index", id="shards without their index"),
        pytest.param(own_code, "needs code of its own", id="code of its own"),
    ],
)
def test_a_model_that_cannot_be_loaded_safely_is_refused(folder: Path, spoil, words: str) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=words) as caught:
        check_model_folder(folder, "spec.model.path")
    assert caught.value.field == "spec.model.path"
    assert caught.value.next_step


def test_shards_that_are_all_there_are_accepted(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert check_model_folder(folder) == folder


def test_an_index_that_nothing_reads_is_no_fault(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("left over")
    assert check_model_folder(folder) == folder


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        check_model_folder(tmp_path / "nowhere")
