"""Word files that come in and names that go out; each target takes one generated case (see typed.py)."""

import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from makemore_pl.data import Vocabulary, split_examples
from makemore_pl.module import MakemoreModule
from makemore_pl.sample import Distributions, Settings, stream
from makemore_pl.words import read_words
from reliability.typed import EXTREMES

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=40)
WORD_FILES = st.one_of(
    st.binary(max_size=400),
    st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"]), st.sampled_from(["", "\ufeff"])).map(
        lambda each: (each[2] + each[1].join(each[0])).encode()
    ),
    st.tuples(LINES, st.binary(max_size=3)).map(lambda each: "\n".join(each[0]).encode("utf-8") + each[1]),
    LINES.map(lambda each: "\n".join(each).encode("utf-16")),
    st.lists(st.text("abcdé中😀", min_size=1, max_size=6), min_size=10, max_size=40).map(
        lambda e: "\n".join(e).encode()
    ),
)


def words(path: Path, content: bytes) -> None:
    """A list that is accepted loses no word and no character."""
    path.write_bytes(content)
    found = read_words(path)
    expected = [line.strip("\ufeff \t\r") for line in content.decode("utf-8").split("\n")]
    assert found == [word for word in expected if word]
    vocabulary = Vocabulary.of(found)
    for word in found[:50]:
        assert "".join(vocabulary.characters[index - 1] for index in vocabulary.encode(word)) == word
    splits = split_examples(found, 3)
    assert sum(len(y) for _, y in splits.values()) == sum(map(len, found)) + len(found)


SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(-1, 12),
        "seed": st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(EXTREMES)),
        "temperature": st.floats(),
        "top_k": st.one_of(st.none(), st.integers(-1, 40)),
        "prompt": st.one_of(st.text("abdelno", max_size=4), st.text(max_size=4)),
        "max_length": st.integers(-1, 30),
        "unique": st.booleans(),
        "batch_size": st.integers(-1, 20),
        "batch_statistics": st.booleans(),
    },
)


def sampling(module: MakemoreModule, given: dict[str, Any]) -> None:
    """Names begin with the prompt, are no longer than they may be, and have a likelihood."""
    settings = Settings(**given)
    distributions = Distributions(module.model, module.vocabulary, module.block_size, settings)
    names = [name for batch in stream(distributions, ()) for name in batch]
    assert settings.unique or len(names) == settings.count
    for name in names:
        assert name.word.startswith(settings.prompt)
        assert len(name.word) <= settings.max_length
        assert name.log_likelihood <= 0
        assert not math.isnan(name.log_likelihood)
