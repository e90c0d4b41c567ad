"""Run alone: pytest tests/test_sample.py"""

import itertools
import json
import math
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from conftest import ROOT, WORDS, Compose, Finished
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makemore_pl import sample as sample_module
from makemore_pl.config import ModelConfig
from makemore_pl.data import Vocabulary
from makemore_pl.model import MLP
from makemore_pl.sample import Distributions, Name, Settings, compare, draw, sample, splitmix64, stream
from makemore_pl.train import run

SCRIPT = ROOT / "scripts" / "sample.py"
ABC = Vocabulary("abc")
LATIN = Vocabulary("abcdefghijklmnopqrstuvwxyz")


def mlp(vocabulary: Vocabulary = ABC, block_size: int = 2, batchnorm: str = "pre_output", seed: int = 1) -> MLP:
    """A network in train mode whose distributions are far from uniform, and running statistics far from a batch's."""
    generator = torch.Generator().manual_seed(seed)
    config = ModelConfig(n_embd=4, n_hidden=24, batchnorm=batchnorm, output_scale=0.3, output_bias=0.3, dropout=0.3)
    model = MLP(len(vocabulary), block_size, config, generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.train()


@torch.no_grad()
def next_character(model: MLP, word: str, vocabulary: Vocabulary, block_size: int) -> Tensor:
    """Log-probabilities (vocab_size,) by one forward pass on one context in float32."""
    context = [*[0] * block_size, *vocabulary.encode(word)][-block_size:]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    log_p = model(torch.tensor([context]))[0].log_softmax(0)
    for module, mode in modes:
        module.training = mode
    return log_p


def exact(
    model: MLP, longest: int, prompt: str, temperature: float, top_k: int | None, block_size: int = 2
) -> dict[str, float]:
    """The probability of every word that ends before `longest` characters."""
    probabilities: dict[str, float] = {}
    pending = {prompt: 1.0}
    while pending:
        word, so_far = pending.popitem()
        p = (next_character(model, word, ABC, block_size).double() / temperature).exp()
        if top_k is not None:
            p[p.argsort(descending=True)[top_k:]] = 0
        p = (p / p.sum()).tolist()
        probabilities[word] = so_far * p[0]
        if len(word) < longest:
            pending |= {word + c: so_far * p[i] for i, c in enumerate(ABC.characters, start=1) if p[i]}
    return {word: p for word, p in probabilities.items() if p}


def fit(names: list[Name], expected: dict[str, float]) -> float:
    """P-value of the chi-square statistic, with all rare and longer words as one class."""
    counts = Counter(name.word for name in names)
    common = {word: p for word, p in expected.items() if p * len(names) > 10}
    observed = [counts[word] for word in common]
    p_rest = 1 - sum(common.values())
    assert len(common) >= 5
    assert p_rest * len(names) > 10
    observed.append(len(names) - sum(observed))
    means = [p * len(names) for p in (*common.values(), p_rest)]
    chi_square = sum((n - mean) ** 2 / mean for n, mean in zip(observed, means, strict=True))
    return float(mpmath.gammainc((len(means) - 1) / 2, chi_square / 2, regularized=True))


CASES = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 2},
    "top_k_cold": {"top_k": 3, "temperature": 0.7},
    "prompt": {"prompt": "b"},
    "prompt_longer_than_the_context": {"prompt": "caab", "temperature": 1.5},
}


@pytest.mark.parametrize("tabled", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_distribution_is_the_models(case: str, tabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not tabled:
        monkeypatch.setattr(sample_module, "TABLE", 0)
    model, settings = mlp(), CASES[case]
    prompt, temperature, top_k = settings.get("prompt", ""), settings.get("temperature", 1.0), settings.get("top_k")
    expected = exact(model, len(prompt) + 4, prompt, temperature, top_k)

    names = sample(model, ABC, 50_000, 2, **settings)

    assert fit(names, expected) > 1e-4


def test_the_fit_tells_distributions_apart() -> None:
    model = mlp()
    names = sample(model, ABC, 200_000, 2)
    assert fit(names, exact(model, 4, "", 1.0, None)) > 1e-4
    assert fit(names, exact(model, 4, "", 1.1, None)) < 1e-4
    assert fit(names, exact(mlp(seed=2), 4, "", 1.0, None)) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_k": 2, "prompt": "ab"}])
def test_log_likelihood_is_of_the_whole_word_at_temperature_1(settings: dict[str, object]) -> None:
    model = mlp()
    names = sample(model, ABC, 200, 2, max_length=6, **settings)
    assert {name.cut for name in names} == {True, False}
    for name in names:
        indices = [*ABC.encode(name.word), *([] if name.cut else [0])]
        expected = sum(float(next_character(model, name.word[:i], ABC, 2)[index]) for i, index in enumerate(indices))
        assert name.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert name.cut == (len(name.word) == 6)


def splitmix64_of_integers(state: int) -> Iterator[int]:
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_splitmix64_gives_the_published_numbers() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int(z) % 2**64 for z in splitmix64(torch.tensor(1234567), torch.arange(4) + 1)] == published
    assert list(itertools.islice(splitmix64_of_integers(1234567), 4)) == published


@pytest.mark.parametrize(
    ("characters", "block_size"), [("abc", 1), ("abc", 4), ("aé\N{GRINNING FACE}語", 2), (LATIN.characters, 20)]
)
def test_names_are_those_of_a_loop_over_names_and_characters(characters: str, block_size: int) -> None:
    """Contexts can have any alphabet and length, though 27^20 does not fit into 64 bits."""
    vocabulary = Vocabulary(characters)
    model = mlp(vocabulary, block_size)
    expected = []
    for _, key in zip(range(40), splitmix64_of_integers(next(splitmix64_of_integers(7))), strict=False):
        word = ""
        for position, z in enumerate(splitmix64_of_integers(key)):
            if position == 12:
                break
            cdf = next_character(model, word, vocabulary, block_size).double().exp().cumsum(0)
            index = int((cdf / cdf[-1] <= (z >> 11) / 2**53).sum())
            if index == 0:
                break
            word += vocabulary.characters[index - 1]
        expected.append(word)

    names = sample(model, vocabulary, 40, block_size, seed=7, max_length=12)

    assert [name.word for name in names] == expected


@pytest.mark.parametrize("tabled", [True, False])
@pytest.mark.parametrize("filters", [{}, {"unique": True, "exclude": ["", "a", "i"], "prompt": "m"}])
def test_names_are_the_same_whatever_the_batch_size(
    filters: dict[str, object], tabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_module, "TABLE", 2**22 if tabled else 0)
    model = mlp(LATIN, 3)
    names = sample(model, LATIN, 1500, 3, max_length=20, **filters)
    for batch_size in (97, 1499):
        assert sample(model, LATIN, 1500, 3, max_length=20, batch_size=batch_size, **filters) == names
    # one by one, and fewer of them
    assert sample(model, LATIN, 20, 3, max_length=20, batch_size=1, **filters) == names[:20]


def test_names_depend_on_the_seed_and_on_nothing_else_of_the_run() -> None:
    model = mlp(LATIN, 3)
    names = sample(model, LATIN, 300, 3)
    assert sample(model, LATIN, 300, 3, seed=43) != names
    assert sample(model.eval(), LATIN, 300, 3) == names
    torch.manual_seed(5)
    with torch.inference_mode():
        assert sample(model, LATIN, 300, 3) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert sample(model, LATIN, 300, 3) == names
    # uncut names don't depend on where others are cut
    shorter = sample(model, LATIN, 300, 3, max_length=5)
    assert [a for a in shorter if not a.cut] == [a for a in names if len(a.word) < 5]


def training(model: MLP, steps: int, observe: Callable[[], object]) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        x = torch.randint(len(LATIN), (32, 3), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x), x[:, -1]).backward()
        if step == 1:
            observe()
        optimizer.step()


def test_training_is_the_same_to_the_bit_when_names_are_drawn_in_it() -> None:
    watched, unwatched = mlp(LATIN, 3), mlp(LATIN, 3)
    watched.output.eval()
    unwatched.output.eval()
    seen: list[nn.Module] = []
    watched.layers[0].register_forward_hook(lambda module, *_: seen.append(module))
    watched.register_forward_pre_hook(lambda module, _: seen.append(module))

    def observe() -> None:
        state, calls = torch.get_rng_state(), len(seen)
        modes = [module.training for module in watched.modules()]
        gradients = [parameter.grad.clone() for parameter in watched.parameters()]
        names = sample(watched, LATIN, 10, 3)
        for batch in stream(Distributions(watched, LATIN, 3, Settings(10))):
            assert batch == names
            assert torch.is_grad_enabled()
        sample(watched, LATIN, 10, 3, batch_statistics=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in watched.modules()] == modes
        assert all(torch.equal(p.grad, old) for p, old in zip(watched.parameters(), gradients, strict=True))
        assert len(seen) == calls

    torch.manual_seed(3)
    training(unwatched, 4, observe=lambda: None)
    torch.manual_seed(3)
    training(watched, 4, observe)
    assert len(seen) == 8
    for (name, expected), tensor in zip(unwatched.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


def test_unique_and_exclude_go_on_until_count_is_reached() -> None:
    model = mlp()
    plain = [name.word for name in sample(model, ABC, 5000, 2)]
    expected = [word for word in dict.fromkeys(plain) if word not in ("", "a", "ab")]
    names = sample(model, ABC, 50, 2, unique=True, exclude=["", "a", "ab"])
    assert [name.word for name in names] == expected[:50]


@pytest.mark.parametrize(("settings", "draws"), [({}, 300), ({"unique": True}, 30_000), ({"exclude": ["", "a"]}, None)])
def test_draws_are_bounded(settings: dict[str, object], draws: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    monkeypatch.setattr(sample_module, "draw", lambda indices, by: drawn.append(indices) or draw(indices, by))
    names = sample(mlp(), ABC, 300, 2, max_length=2, batch_size=7001, **settings)
    assert torch.equal(torch.cat(drawn), torch.arange(draws or sum(map(len, drawn))))
    assert len(names) == (1 + 3 + 9 if "unique" in settings else 300)


def test_names_of_no_characters() -> None:
    model = mlp(batchnorm="none")
    with torch.no_grad():
        model.output[0].bias[0] = 1e4
    assert sample(model, ABC, 3, 2) == [Name("", pytest.approx(0, abs=1e-9), False)] * 3


@pytest.mark.parametrize("temperature", [1e-300, 1e-3])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    model = mlp(LATIN, 3)
    assert {name.word for name in sample(model, LATIN, 50, 3, temperature=temperature)} == {
        name.word for name in sample(model, LATIN, 1, 3, top_k=1)
    }


def test_batch_statistics_make_names_depend_on_their_neighbours() -> None:
    model = mlp(LATIN, 3)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    settings = Settings(12, max_length=12)
    running = Distributions(model, LATIN, 3, settings)
    batch = Distributions(model, LATIN, 3, replace(settings, batch_statistics=True))

    ours, together, crowded, alone = zip(*compare(running, batch), strict=True)

    assert list(ours) == [name.word for name in sample(model, LATIN, 12, 3, max_length=12)]
    for one, other in itertools.combinations((ours, together, crowded, alone), 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 3
    # the same neighbours, the same names; by running statistics neighbours don't matter
    assert [name.word for name in draw(torch.arange(12), batch)] == list(together)
    assert [draw(torch.tensor([i]), running)[0].word for i in range(12)] == list(ours)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ValueError, match="has no BatchNorm"):
        Distributions(mlp(batchnorm="none"), ABC, 2, replace(settings, batch_statistics=True))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"count": 0}, "count must be at least 1, got 0."),
        ({"top_k": 0}, "top_k must be at least 1, got 0."),
        ({"max_length": 0}, "max_length must be at least 1, got 0."),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1."),
        ({"seed": -1}, "seed must be in [0, 2**63), got -1."),
        ({"temperature": 0.0}, "temperature must be greater than 0 and finite, got 0.0."),
        ({"temperature": math.nan}, "temperature must be greater than 0 and finite, got nan."),
        ({"temperature": math.inf}, "temperature must be greater than 0 and finite, got inf."),
        ({"prompt": "abcab", "max_length": 5}, "max_length=5 leaves nothing to draw after the prompt 'abcab'."),
        ({"prompt": "aX.é"}, "'aX.é' has characters outside the vocabulary: . X é"),
    ],
)
def test_bad_values_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sample(mlp(), ABC, **{"count": 5, "block_size": 2} | settings)


def test_a_network_that_is_not_finite_is_refused() -> None:
    model = mlp()
    with torch.no_grad():
        model.embedding.weight[1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        sample(model, ABC, 100, 2)


@pytest.fixture
def run_directory(small: Compose, tmp_path: Path) -> Path:
    run(small("+experiment=batchnorm"))
    return tmp_path / "run"


Script = Callable[..., Finished]


@pytest.fixture
def script(run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """scripts/sample.py on the run, in this process."""

    def call(*arguments: str) -> Finished:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run_directory), *arguments])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        return Finished(code, *capsys.readouterr())

    return call


def test_script_prints_names_and_statistics(script: Script) -> None:
    text = script("--count", "300", "--max-length", "9", "--statistics")
    again = script(
        "--count", "300", "--max-length", "9", "--batch-size", "7", "--format", "json", "--checkpoint", "last"
    )
    assert text.code == again.code == 0
    content = json.loads(again.out)
    assert (content["settings"]["count"], content["settings"]["seed"]) == (300, 42)
    names = [Name(**each) for each in content["names"]]
    words = [name.word for name in names]
    assert text.out == "".join(f"{word}\n" for word in words)
    assert max(map(len, words)) == 9
    cut, characters = sum(name.cut for name in names), sum(map(len, words))
    log_likelihood = sum(name.log_likelihood for name in names)
    assert 0 < cut < 300
    assert text.err.splitlines() == [
        "names           300",
        f"new             {sum(word not in WORDS for word in words) / 300:.4f} are not in the word list",
        f"unique          {len(set(words)) / 300:.4f}",
        f"cut             {cut / 300:.4f} reached --max-length",
        f"mean length     {characters / 300:.4f}, of the word list {sum(map(len, WORDS)) / len(WORDS):.4f}",
        f"log-likelihood  {log_likelihood / 300:.4f} nats a name, "
        f"{log_likelihood / (characters + 300 - cut):.4f} a character, end marks included",
    ]


def test_script_passes_over_known_and_repeated_names(script: Script) -> None:
    done = script("--count", "40", "--unique", "--new-only", "--prompt", "a", "--max-length", "4")
    names = done.out.splitlines()
    assert (done.code, len(names), len(set(names))) == (0, 40, 40)
    assert all(name.startswith("a") and len(name) <= 4 for name in names)
    assert not set(names) & set(WORDS)
    greedy = script("--count", "3", "--unique", "--top-k", "1", "--format", "json")
    assert (greedy.code, len(json.loads(greedy.out)["names"])) == (1, 1)
    assert greedy.err == (
        "error: Only 1 of 3 unique names were found in 100 draws for each name, at least 10,000 in all.\n"
    )


def test_script_compares_batch_statistics(script: Script) -> None:
    names = script("--count", "6", "--max-length", "12").out.splitlines()
    done = script("--count", "6", "--max-length", "12", "--compare-batch-statistics", "--format", "json")
    rows = json.loads(done.out)["names"]
    assert [row["running_statistics"] for row in rows] == names
    differ = [sum(row[a] != row[b] for row in rows) for a, b in (WAYS[:2], WAYS[1:3], WAYS[1::2])]
    assert done.err == (
        f"With BatchNorm left in train mode, {differ[0]} of 6 names are different; "
        f"{differ[1]} change in a larger batch, and {differ[2]} change alone.\n"
    )
    table = script("--count", "6", "--max-length", "12", "--compare-batch-statistics").out.splitlines()
    assert table[0].split() == list(WAYS)
    assert len(table) == 7


WAYS = ("running_statistics", "batch_statistics", "other_neighbours", "alone")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--count", "0"], "count must be at least 1, got 0."),
        (["--prompt", "aXb"], "'aXb' has characters outside the vocabulary: X"),
        (["--unique", "--compare-batch-statistics"], "--compare-batch-statistics goes without --unique, "),
    ],
)
def test_script_refuses_in_one_sentence(script: Script, arguments: list[str], sentence: str) -> None:
    done = script(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"error: {sentence}")


def test_script_ends_silently_when_its_reader_leaves(run_directory: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(run_directory), "--count", "100000000", "--max-length", "8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        head = subprocess.run(["head", "-n", "3"], stdin=process.stdout, capture_output=True, check=True, timeout=120)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0
    assert head.stdout.count(b"\n") == 3
