"""Which model folders are accepted, and what is said of the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny_model
from transfer_api.errors import ModelError
from transfer_pod.model import causal_types, check_model_folder, first_sentence, linear_sides, safetensors_header, weight_files


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


def of_type(folder: Path, kind: str | None) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"model_type": kind}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


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
        pytest.param(lambda f: of_type(f, "lama"), r"no causal language model .* \(got 'lama'\).* Did you mean llama", id="unknown type"),
        pytest.param(lambda f: of_type(f, "t5"), "no causal language model of transformers", id="a type of another kind"),
        pytest.param(lambda f: of_type(f, None), "config.json has no model_type", id="no type"),
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


def test_the_types_that_transformers_loads_are_known_without_importing_it() -> None:
    code = "import sys; from transfer_pod.model import causal_types; print(*causal_types()); assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    assert set(done.stdout.split()) == set(KNOWN)


def test_a_version_of_transformers_with_its_list_elsewhere_refuses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer_pod.model._CAUSAL_LIST", "ELSEWHERE")
    monkeypatch.setattr("transfer_pod.model.causal_types", causal_types.__wrapped__)
    of_type(folder, "newest")
    assert check_model_folder(folder) == folder


def test_of_an_error_of_transformers_its_advice_is_not_passed_on() -> None:
    told = "The checkpoint has model type `foo` but Transformers does not recognize this architecture. This could be … `pip install`"
    assert first_sentence(ValueError(told)) == "The checkpoint has model type `foo` but Transformers does not recognize this architecture"
    assert first_sentence(OSError("no file model-1.0.safetensors\n\nTry again")) == "no file model-1.0.safetensors"


def test_a_pipe_with_the_name_of_weights_is_none_of_them(folder: Path) -> None:
    os.mkfifo(folder / "more.safetensors")
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert linear_sides(check_model_folder(folder))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        check_model_folder(tmp_path / "nowhere")
