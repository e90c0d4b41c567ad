"""Words, windows, splits, and strides of minibatches."""

import gc
import hashlib
import http.server
import itertools
import logging
import math
import random
import socket
import threading
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import torch
from conftest import WORDS, Compose
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore_pl import words as words_module
from makemore_pl.config import DataConfig, TrainerConfig
from makemore_pl.data import (
    Minibatches,
    NamesDataModule,
    Vocabulary,
    examples,
    split_examples,
    split_words,
)
from makemore_pl.stride.watched_steps import Strides, next_watched, validation_due
from makemore_pl.words import LECTURE_SHA256, load_words, read_words

# --- windows, vocabulary, splits -------------------------------------------------------------------------------------


def decoded(vocabulary: Vocabulary, indices: list[int]) -> str:
    return "".join(("." + vocabulary.characters)[index] for index in indices)


def test_windows_of_emma_by_hand() -> None:
    vocabulary = Vocabulary("aem")
    x, y = examples(["emma"], vocabulary, block_size=3)
    windows = [
        (decoded(vocabulary, context), decoded(vocabulary, [target]))
        for context, target in zip(x.tolist(), y.tolist(), strict=True)
    ]
    assert windows == [("...", "e"), ("..e", "m"), (".em", "m"), ("emm", "a"), ("mma", ".")]
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert x.is_contiguous()


def test_windows_do_not_reach_into_the_next_word() -> None:
    x, y = examples(["ab", "b"], Vocabulary("ab"), block_size=2)
    assert x.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 2]]
    assert y.tolist() == [1, 2, 0, 2, 0]


@pytest.mark.parametrize("block_size", [1, 3, 8, 20])
def test_windows_equal_the_lecture_s_loop(block_size: int) -> None:
    vocabulary = Vocabulary.of(WORDS)
    xs, ys = [], []
    for word in WORDS:
        context = [0] * block_size
        for index in [*vocabulary.encode(word), 0]:
            xs.append(context)
            ys.append(index)
            context = [*context[1:], index]
    x, y = examples(WORDS, vocabulary, block_size)
    assert x.tolist() == xs
    assert y.tolist() == ys
    assert len(y) == sum(len(word) + 1 for word in WORDS)


def test_vocabulary_is_sorted_and_the_end_mark_is_0() -> None:
    vocabulary = Vocabulary.of(["emma", "ava"])
    assert vocabulary.characters == "aemv"
    assert len(vocabulary) == 5
    assert vocabulary.encode("vema") == [4, 2, 3, 1]
    assert decoded(vocabulary, [0, 4, 2, 3, 1, 0]) == ".vema."


def test_vocabulary_refuses_other_characters_by_name() -> None:
    with pytest.raises(ValueError, match=r"^'emil' has characters outside the vocabulary: i l$"):
        Vocabulary.of(["emma"]).encode("emil")


@given(
    st.lists(
        st.text(st.characters(exclude_characters=".", exclude_categories=["Cs", "Cc", "Z"]), min_size=1), min_size=1
    )
)
@settings(deadline=None, max_examples=50)
def test_any_alphabet_comes_back(words: list[str]) -> None:
    vocabulary = Vocabulary.of(words)
    x, y = examples(words, vocabulary, block_size=2)
    assert int(max(x.max(), y.max())) < len(vocabulary)
    assert decoded(vocabulary, y.tolist()) == "".join(word + "." for word in words)


def test_splits_are_disjoint_and_the_lecture_s() -> None:
    words = [f"w{i}" for i in range(1003)]
    splits = split_words(words)
    assert {name: len(part) for name, part in splits.items()} == {"train": 802, "val": 100, "test": 101}
    assert sorted(word for part in splits.values() for word in part) == sorted(words)
    shuffled = list(words)
    random.seed(42)  # as the lecture's cell does
    random.shuffle(shuffled)
    assert [word for part in splits.values() for word in part] == shuffled
    assert words == [f"w{i}" for i in range(1003)], "the caller's list stays as it is"


def test_splits_of_the_lecture_s_names(lecture_names: Path) -> None:
    words = load_words(DataConfig(source="lecture", path=str(lecture_names)))
    vocabulary = Vocabulary.of(words)
    shapes = {name: examples(part, vocabulary, 3)[0].shape for name, part in split_words(words).items()}
    # printed by the lecture's notebook
    assert len(words) == 32_033
    assert len(vocabulary) == 27
    assert shapes == {"train": (182_625, 3), "val": (22_655, 3), "test": (22_866, 3)}


def test_examples_are_made_once_for_the_same_words_and_block_size() -> None:
    once, again = split_examples(WORDS, 3), split_examples(list(WORDS), 3)
    assert all(once[split][0] is again[split][0] for split in once)
    once["train"] = once["val"]  # as a data module does that moves them to a device
    assert split_examples(WORDS, 3)["train"][0] is again["train"][0]
    assert split_examples(WORDS, 2)["val"][0].shape == (len(again["val"][1]), 2)
    assert not torch.equal(split_examples([*WORDS[1:], "new"], 3)["train"][0], again["train"][0])


def test_embedded_list_is_the_one_described() -> None:
    raw = (resources.files("makemore_pl.names") / "ssa_names_2018.txt").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == "bd02dfd33179e23ec2dd093cbd4de619834f75d660ef1ae04d3127e7a0110053"
    words = load_words(DataConfig())
    assert len(words) == 32_257
    assert Vocabulary.of(words).characters == "abcdefghijklmnopqrstuvwxyz"


# --- word files ------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each test compares the whole sentence)
        load_words(DataConfig(path=str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nothing.txt"
    said = f"There is no word file {path}: data.path must name a text file with one word a line."
    assert refused(path) == said
    assert (
        refused(tmp_path) == f"There is no word file {tmp_path}: data.path must name a text file with one word a line."
    )


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n \n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    assert refused(path) == f"{path} holds too few words, 0: at least 10 are needed to split them 80/10/10."


def test_fewer_than_10_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS[:9]))
    assert refused(path) == f"{path} holds too few words, 9: at least 10 are needed to split them 80/10/10."
    path.write_text("\n".join(WORDS[:10]))
    assert read_words(path) == WORDS[:10]
    assert all(split_words(WORDS[:10]).values()), "with 10 words no split is empty"


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\n".join([*WORDS, "zoë", "abo"]).encode("latin-1"))
    assert refused(path) == f"{path}, line {len(WORDS) + 1}: not UTF-8. Save the file as UTF-8 text."


def test_utf16_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\n".join(WORDS).encode("utf-16"))
    assert refused(path) == f"{path}, line 1: not UTF-8. Save the file as UTF-8 text."


def test_word_with_the_end_mark(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["abo", "", "st.john", *WORDS]))
    assert refused(path) == (f"{path}, line 3: 'st.john' contains '.', which marks start and end of a word. Remove it.")


def test_cleaning_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(["abo", "bela\r", "", " cido \t", "  ", *WORDS, ""]).encode())
    with caplog.at_level(logging.INFO):
        words = read_words(path)
    assert words == ["abo", "bela", "cido", *WORDS]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: lines cleaned: 5 (byte-order mark, CRLF, blank lines, spaces around words)."
    ]


def test_clean_file_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "words.txt"
    for content in ("\n".join(WORDS), "\n".join(WORDS) + "\n"):
        path.write_text(content)
        with caplog.at_level(logging.INFO):
            assert read_words(path) == WORDS
    assert not caplog.records


def test_crlf_gives_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(("\r\n".join(WORDS) + "\r\n").encode())
    assert read_words(path) == WORDS


def test_any_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    words = ["zoë", "łucja", "東京", "Ωμέγα", "мария", "نور", "🙂🙃", "naïve", "o'neil", "anne-marie", "emma"]
    path.write_text("\n".join(words), encoding="utf-8")
    assert load_words(DataConfig(path=str(path))) == words
    vocabulary = Vocabulary.of(words)
    assert [decoded(vocabulary, vocabulary.encode(word)) for word in words] == words


# --- the lecture's list ----------------------------------------------------------------------------------------------


# pooch leaves its connections to the garbage collector, which may come in any later test
SOCKETS = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(words_module, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield tmp_path / "cache"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as closed:  # a port nobody listens on
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/names.txt"
    monkeypatch.setattr(words_module, "LECTURE_URL", url)
    return url


def fetch_refused(cache: Path, url: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole sentence is compared)
        load_words(DataConfig(source="lecture"))
    assert str(caught.value) == (
        f"The lecture's names.txt could not be fetched from {url}: put it at {cache / 'names.txt'} (SHA-256 "
        f"{LECTURE_SHA256}) or name it with data.path=FILE; data=names needs no network."
    )


@SOCKETS
def test_lecture_without_network(cache: Path, no_network: str) -> None:
    fetch_refused(cache, no_network)


@SOCKETS
def test_lecture_from_where_the_sentence_says_to_put_it(cache: Path, no_network: str, lecture_names: Path) -> None:
    cache.mkdir()
    (cache / "names.txt").write_bytes(lecture_names.read_bytes())
    assert len(load_words(DataConfig(source="lecture"))) == 32_033


@pytest.fixture
def server(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real server on this machine; yields the directory it serves."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setattr(words_module, "LECTURE_URL", f"http://127.0.0.1:{running.server_port}/names.txt")
        yield served
        running.shutdown()
        thread.join()


@SOCKETS
def test_lecture_is_fetched_once(server: Path, cache: Path, lecture_names: Path) -> None:
    (server / "names.txt").write_bytes(lecture_names.read_bytes())
    assert load_words(DataConfig(source="lecture"))[0] == "emma"
    assert (cache / "names.txt").is_file()
    (server / "names.txt").unlink()
    assert load_words(DataConfig(source="lecture"))[0] == "emma"


@SOCKETS
def test_lecture_fetched_with_another_hash(server: Path, cache: Path) -> None:
    (server / "names.txt").write_text("\n".join(WORDS))
    fetch_refused(cache, words_module.LECTURE_URL)
    assert not (cache / "names.txt").exists(), "a wrong file must not stay in the cache"


@SOCKETS
def test_lecture_not_found_on_the_server(server: Path, cache: Path) -> None:
    fetch_refused(cache, words_module.LECTURE_URL)


def test_lecture_path_with_another_hash(words_file: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole sentence is compared)
        load_words(DataConfig(source="lecture", path=str(words_file)))
    assert str(caught.value) == (
        f"{words_file} is not the lecture's names.txt (SHA-256 {LECTURE_SHA256}): "
        "leave out data=lecture to train on other words."
    )


# --- strides ---------------------------------------------------------------------------------------------------------


def strides(config: TrainerConfig, first: int = 0) -> list[tuple[int, int]]:
    return [(stride.first, stride.watched) for stride in Strides(config, lambda: first)]


def documented(config: TrainerConfig) -> set[int]:
    """Step 0, 1, 2, 5, 10, 20, 50, ... below watch_every, its multiples, validations, the last step."""
    k, n = config.watch_every, config.max_steps
    early = {m * 10**p for m in (1, 2, 5) for p in range(10) if m * 10**p < k}
    multiples = set(range(k, n, k)) | set(range(config.val_check_interval, n, config.val_check_interval))
    return {step for step in {0} | early | multiples | {n - 1} if step < n}


@pytest.mark.parametrize(
    ("watch_every", "max_steps", "watched"),
    [
        (1, 4, [0, 1, 2, 3]),
        (7, 30, [0, 1, 2, 5, 7, 14, 21, 28, 29]),
        (500, 1234, [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1233]),
        (500, 501, [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]),
        (500, 500, [0, 1, 2, 5, 10, 20, 50, 100, 200, 499]),
        (1000, 1, [0]),
        (1000, 2, [0, 1]),
        (2, 6, [0, 1, 2, 4, 5]),
    ],
)
def test_watched_steps_by_hand(watch_every: int, max_steps: int, watched: list[int]) -> None:
    config = TrainerConfig(watch_every=watch_every, max_steps=max_steps)
    assert [last for _, last in strides(config)] == watched


def test_steps_after_which_validation_is_due_are_watched() -> None:
    config = TrainerConfig(watch_every=10, max_steps=40, val_check_interval=12)
    assert [last for _, last in strides(config)] == [0, 1, 2, 5, 10, 12, 20, 24, 30, 36, 39]
    assert [step for _, step in strides(config) if validation_due(step, config)] == [12, 24, 36, 39]


configs = st.builds(
    TrainerConfig,
    watch_every=st.integers(1, 3000),
    max_steps=st.integers(1, 6000),
    val_check_interval=st.integers(1, 6000),
)


@given(configs, st.data())
@settings(deadline=None, max_examples=200)
def test_strides_partition_the_steps(config: TrainerConfig, data: st.DataObject) -> None:
    got = strides(config)
    assert got[0][0] == 0
    assert got[-1][1] == config.max_steps - 1
    assert all(first <= watched for first, watched in got)
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(got))
    assert {watched for _, watched in got} == documented(config)
    # from wherever training resumes the same steps are watched
    step = data.draw(st.integers(0, config.max_steps - 1))
    assert {watched for _, watched in strides(config, step)} == {each for each in documented(config) if each >= step}
    assert next_watched(step, config) == min(each for each in documented(config) if each >= step)


def test_nothing_is_left_to_do_after_the_last_step() -> None:
    assert strides(TrainerConfig(max_steps=100), first=100) == []


# --- minibatches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 4, 100])
def test_a_stride_is_drawn_in_slices(small: Compose, most: int) -> None:
    config = small()
    cpu = torch.device("cpu")
    whole = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(3)).minibatches(10, cpu)
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(3))
    batch = Minibatches(10, lambda count: datamodule.minibatches(count, cpu))
    before = datamodule.generator.get_state()
    assert len(batch) == 10
    assert torch.equal(datamodule.generator.get_state(), before), "nothing is drawn before it is asked for"
    slices = list(batch.unwatched(most))
    assert [len(y) for _, y in slices][:-1] == [most] * (len(slices) - 1)
    x, y = batch.watched()
    assert torch.equal(torch.cat([*(x for x, _ in slices), x[None]]), whole[0])
    assert torch.equal(torch.cat([*(y for _, y in slices), y[None]]), whole[1])


@pytest.mark.parametrize("watch_every", [1, 7, 500])
def test_minibatches_are_one_stream_whatever_is_watched(small: Compose, watch_every: int) -> None:
    config = small(f"trainer.watch_every={watch_every}", "trainer.max_steps=600")
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(3))
    taken = [
        datamodule.minibatches(watched - first + 1, torch.device("cpu")) for first, watched in strides(config.trainer)
    ]
    x, y = (torch.cat(each) for each in zip(*taken, strict=True))
    assert x.shape == (600, 8, 3)
    assert y.shape == (600, 8)
    all_x, all_y = datamodule.examples["train"]
    generator = torch.Generator().manual_seed(3)
    for step in range(600):  # as the lecture draws them, one at a time
        ix = torch.randint(0, len(all_y), (8,), generator=generator)
        assert torch.equal(x[step], all_x[ix])
        assert torch.equal(y[step], all_y[ix])


def test_minibatches_cover_the_training_split_and_nothing_else(small: Compose) -> None:
    config = small()
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(0))
    x, y = datamodule.minibatches(400, torch.device("cpu"))
    seen = set(map(tuple, torch.cat([x.flatten(0, 1), y.flatten()[:, None]], dim=1).tolist()))
    train_x, train_y = examples(split_words(WORDS)["train"], datamodule.vocabulary, 3)
    assert seen == set(map(tuple, torch.cat([train_x, train_y[:, None]], dim=1).tolist()))


def test_generator_state_comes_back(small: Compose) -> None:
    config = small()
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(3))
    datamodule.minibatches(5, torch.device("cpu"))
    state = datamodule.state_dict()
    after, _ = datamodule.minibatches(5, torch.device("cpu"))
    again = NamesDataModule(config.data, config.trainer, torch.Generator().manual_seed(99))
    again.load_state_dict(state)
    assert torch.equal(again.minibatches(5, torch.device("cpu"))[0], after)


def test_validation_sees_every_example_once(small: Compose) -> None:
    config = small()
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator())
    x = torch.cat([x for x, _ in datamodule.val_dataloader()])
    assert torch.equal(x, datamodule.examples["val"][0])
    assert math.prod(x.shape) > 0


def test_a_tilde_is_the_home(tmp_path: Path, words_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(words_file.parent))
    assert load_words(DataConfig(path=f"~/{words_file.name}")) == read_words(words_file)
