"""A folder of small tasks in the harness's format, made of sentences of our own."""

from __future__ import annotations

import json
from pathlib import Path

ANIMALS = [("gajah", "elephant"), ("kucing", "cat"), ("kuda", "horse"), ("ikan", "fish"), ("burung", "bird"), ("ular", "snake")]

LETTERS = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: letters.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0, language: id}
"""
CLOZE = """\
task: cloze
dataset_path: json
dataset_kwargs: {data_files: {test: letters.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0, language: id}
"""
ROLLING = """\
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
metadata: {version: 1.0}
"""
GENERATED = """\
task: generated
dataset_path: json
dataset_kwargs: {data_files: {test: letters.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""
BOTH = """\
group: both
task: [letters, cloze]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
"""


def write_tasks(folder: Path) -> Path:
    """Writes the tasks letters, cloze, rolling, generated, their group both, and their data; returns the folder."""
    for name, content in {"letters": LETTERS, "cloze": CLOZE, "rolling": ROLLING, "generated": GENERATED, "both": BOTH}.items():
        (folder / f"{name}.yaml").write_text(content)
    with (folder / "letters.jsonl").open("w") as file:
        for number, (word, meaning) in enumerate(ANIMALS):
            others = [other for _, other in ANIMALS if other != meaning][:3]
            choices = [*others[: number % 4], meaning, *others[number % 4 :]]
            file.write(json.dumps({"question": f"What is {word}?", "choices": choices, "answer": number % 4}) + "\n")
    with (folder / "texts.jsonl").open("w") as file:
        for repeat in (1, 20):
            file.write(json.dumps({"text": " ".join(f"{word} is {meaning}." for word, meaning in ANIMALS * repeat)}) + "\n")
    return folder
