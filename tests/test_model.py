"""Shapes, initialization and the first loss of the network."""

import math

import pytest
import reference
import torch
from conftest import EXPERIMENTS, Compose
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from makemore_pl.activations import ACTIVATIONS
from makemore_pl.config import Config, DataConfig, ModelConfig, OptimConfig, choices
from makemore_pl.config.choices import BATCHNORM_PLACEMENTS
from makemore_pl.data import NamesDataModule
from makemore_pl.dropout import Dropout
from makemore_pl.initialization import INITS, weight_std
from makemore_pl.model import MLP
from makemore_pl.module import SCHEDULES
from makemore_pl.stride.optimizers import METHODS, build_optimizer
from makemore_pl.train import build
from makemore_pl.words import SOURCES, load_words

PLACES = {
    "none": [],
    "pre": ["layers.0.batchnorm", "layers.1.batchnorm"],
    "post": ["layers.0.batchnorm", "layers.1.batchnorm"],
    "output": ["output.batchnorm"],
    "pre_output": ["layers.0.batchnorm", "layers.1.batchnorm", "output.batchnorm"],
}


def mlp(vocab_size: int = 27, block_size: int = 3, seed: int = 0, **config: object) -> MLP:
    return MLP(vocab_size, block_size, ModelConfig(**config), torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def contexts(count: int = 50, vocab_size: int = 27, block_size: int = 3) -> Tensor:
    return torch.randint(vocab_size, (count, block_size), generator=torch.Generator().manual_seed(1))


def spread(tensor: Tensor) -> float:
    """Root mean square: the standard deviation of numbers whose mean is known to be 0."""
    return tensor.detach().square().mean().sqrt().item()


# --- architecture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", BATCHNORM_PLACEMENTS)
def test_batchnorm_is_where_it_is_said_to_be(batchnorm: str) -> None:
    model = mlp(batchnorm=batchnorm, n_layers=2, dropout=0.1, bn_momentum=0.25, bn_eps=1e-3)
    found = {name: each for name, each in model.named_modules() if isinstance(each, nn.BatchNorm1d)}
    assert list(found) == PLACES[batchnorm]
    assert all((each.momentum, each.eps) == (0.25, 1e-3) for each in found.values())
    order = [name for name, _ in model.layers[0].named_children()]
    assert order == {
        "pre": ["linear", "batchnorm", "activation", "dropout"],
        "pre_output": ["linear", "batchnorm", "activation", "dropout"],
        "post": ["linear", "activation", "batchnorm", "dropout"],
    }.get(batchnorm, ["linear", "activation", "dropout"])


@pytest.mark.parametrize("batchnorm", BATCHNORM_PLACEMENTS)
def test_no_bias_straight_before_batchnorm(batchnorm: str) -> None:
    model = mlp(batchnorm=batchnorm, n_layers=2)
    assert [layer.linear.bias is None for layer in model.layers] == [batchnorm in ("pre", "pre_output")] * 2
    assert (model.output.linear.bias is None) == (batchnorm in ("output", "pre_output"))


@pytest.mark.parametrize(
    ("experiment", "parameters"),
    [
        # 27*10 + 30*200 + 200 + 200*27 + 27
        ("original", 11_897),
        ("kaiming", 11_897),
        # 200 hidden biases less, BatchNorm's 2 * 200 more: the lecture prints 12097
        ("batchnorm", 12_097),
        # 27*10 + 30*100 + 4*100*100 + 5*2*100 + 100*27 + 2*27: the lecture prints 47024
        ("deep_batchnorm", 47_024),
    ],
)
def test_parameter_counts(compose: Compose, experiment: str, parameters: int) -> None:
    config = compose(f"+experiment={experiment}")
    model = MLP(27, config.data.block_size, config.model, torch.Generator())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_shapes() -> None:
    model = mlp(vocab_size=11, block_size=5, n_embd=4, n_hidden=7, n_layers=3, batchnorm="pre")
    assert model(contexts(9, 11, 5)).shape == (9, 11)
    assert model.embedding.weight.shape == (11, 4)
    assert [layer.linear.weight.shape for layer in model.layers] == [(7, 20), (7, 7), (7, 7)]
    assert model.output.linear.weight.shape == (11, 7)


def test_each_position_of_the_context_has_weights_of_its_own() -> None:
    model = mlp()
    x = contexts(1)
    assert not torch.equal(model(x), model(x.flip(1)))
    weight = model.layers[0].linear.weight
    first = torch.cat([model.embedding.weight[index] for index in x[0].tolist()])
    torch.testing.assert_close(model.layers[0].linear(model.embedding(x).flatten(1))[0], weight @ first)


@pytest.mark.parametrize("activation", choices.ACTIVATION_NAMES)
def test_activations(activation: str) -> None:
    z = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(mlp(activation=activation).layers[0].activation(z), reference.ACTIVATIONS[activation](z))


def test_every_activation_is_a_module_of_its_own() -> None:
    layers = mlp(n_layers=4).layers
    assert len({id(layer.activation) for layer in layers}) == 4


def test_every_choice_is_in_its_table() -> None:
    """A name that is only in choices.py would do nothing, or the same as another name."""
    tables = {
        "activations.ACTIVATIONS": (choices.ACTIVATION_NAMES, ACTIVATIONS),
        "initialization.INITS": (choices.INIT_NAMES, INITS),
        "words.SOURCES": (choices.SOURCE_NAMES, SOURCES),
        "module.SCHEDULES": (choices.SCHEDULE_NAMES, SCHEDULES),
        "stride.optimizers.METHODS": (choices.OPTIMIZER_SETTINGS, METHODS),
        "test_model.PLACES": (choices.BATCHNORM_PLACEMENTS, PLACES),
    }
    assert {
        (table, name) for table, (names, entries) in tables.items() for name in set(names) ^ set(entries)
    } == set(), "missing on one of both sides"


def test_every_optimizer_gets_its_settings() -> None:
    """Each setting that choices.py gives an optimizer reaches torch; what it has not stays torch's default."""
    values = {
        "momentum": 0.3, "nesterov": True, "beta1": 0.4, "beta2": 0.5, "eps": 1e-3, "alpha": 0.6, "weight_decay": 0.7,
    }  # fmt: skip
    for name, settings in choices.OPTIMIZER_SETTINGS.items():
        config = OptimConfig(name=name, lr=0.2, **{setting: values[setting] for setting in settings})
        optimizer = build_optimizer(mlp().parameters(), config)
        assert type(optimizer).__name__.lower() == name
        expected = {setting: values[setting] for setting in settings} | {"lr": 0.2}
        if "beta1" in expected:
            expected["betas"] = (expected.pop("beta1"), expected.pop("beta2"))
        untouched = type(optimizer)(mlp().parameters()).defaults
        assert optimizer.defaults == untouched | expected


def test_dropout_takes_the_random_numbers_of_torch_s_own() -> None:
    """The masks are equal on the CPU, bit by bit."""
    x = torch.randn(32, 200, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    theirs = nn.Dropout(0.3)(x)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(Dropout(0.3)(x), theirs)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_there_only_in_training() -> None:
    model = mlp(dropout=0.5, output_scale=1.0)
    x = contexts()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# --- initialization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fan_in", [30, 300])
@pytest.mark.parametrize(
    ("init", "gain", "expected"),
    [
        ("kaiming", None, lambda fan_in, fan_out: (5 / 3) / math.sqrt(fan_in)),
        ("kaiming", 0.5, lambda fan_in, fan_out: 0.5 / math.sqrt(fan_in)),
        ("xavier", None, lambda fan_in, fan_out: (5 / 3) * math.sqrt(2 / (fan_in + fan_out))),
        ("xavier", 3.0, lambda fan_in, fan_out: 3 * math.sqrt(2 / (fan_in + fan_out))),
        ("small", None, lambda fan_in, fan_out: 0.01),
        ("small", 2.0, lambda fan_in, fan_out: 0.02),
        ("normal", None, lambda fan_in, fan_out: 1.0),
        ("normal", 0.2, lambda fan_in, fan_out: 0.2),
    ],
)
def test_spread_of_hidden_weights(init: str, gain: float | None, expected: object, fan_in: int) -> None:
    std = expected(fan_in, 400)  # type: ignore[operator]
    assert weight_std(init, gain, "tanh", fan_in, 400) == pytest.approx(std, rel=1e-12)
    model = mlp(n_embd=fan_in // 3, n_hidden=400, n_layers=2, init=init, gain=gain)
    # n numbers give their own spread to one part in sqrt(2 n): 0.65 % for 12,000, of which 4 are allowed
    assert spread(model.layers[0].linear.weight) == pytest.approx(std, rel=4 / math.sqrt(2 * fan_in * 400))
    std = expected(400, 400)  # type: ignore[operator]
    assert spread(model.layers[1].linear.weight) == pytest.approx(std, rel=4 / math.sqrt(2 * 400 * 400))


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS} - {"tanh"}))
def test_gains_keep_the_second_moment(activation: str) -> None:
    """1 / sqrt(E[f(z)^2]), by the trapezoidal rule over the Gaussian."""
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(mlp(activation=activation).layers[0].activation(z).square() * density, z).item()
    # gelu's, silu's and sigmoid's are written with 5 digits
    assert ACTIVATIONS[activation].gain == pytest.approx(1 / math.sqrt(moment), rel=5e-5)


def test_gains_are_pytorch_s() -> None:
    """But for sigmoid's, which is 1 there by convention."""
    for activation, theirs in (
        ("tanh", "tanh"), ("relu", "relu"), ("leaky_relu", "leaky_relu"), ("identity", "linear"),
    ):  # fmt: skip
        assert ACTIVATIONS[activation].gain == pytest.approx(nn.init.calculate_gain(theirs), rel=1e-12)


def test_biases_and_output() -> None:
    model = mlp(n_hidden=10_000, hidden_bias=0.01, output_scale=0.3, output_bias=0.0)
    assert spread(model.layers[0].linear.bias) == pytest.approx(0.01, rel=4 / math.sqrt(2 * 10_000))
    assert spread(model.output.linear.weight) == pytest.approx(0.3, rel=4 / math.sqrt(2 * 270_000))
    assert torch.count_nonzero(model.output.linear.bias) == 0
    model = mlp(vocab_size=5_000, n_hidden=2, output_bias=1.5)
    assert spread(model.output.linear.bias) == pytest.approx(1.5, rel=4 / math.sqrt(2 * 5_000))
    assert torch.count_nonzero(model.layers[0].linear.bias) == 0


def test_output_scale_with_batchnorm_on_the_logits_is_its_weight() -> None:
    model = mlp(batchnorm="pre_output", gain=1.0, output_scale=0.1, n_hidden=400)
    assert torch.equal(model.output.batchnorm.weight, torch.full((27,), 0.1))
    assert torch.equal(model.layers[0].batchnorm.weight, torch.ones(400))
    assert spread(model.output.linear.weight) == pytest.approx(1 / math.sqrt(400), rel=4 / math.sqrt(2 * 400 * 27))


def test_order_of_random_numbers() -> None:
    """Embedding, then weight (fan_in, fan_out) and bias of each layer; a bias is drawn also where it is scaled to 0."""
    generator = torch.Generator().manual_seed(5)
    model = MLP(27, 3, ModelConfig(n_hidden=8, n_layers=2, init="normal", output_scale=0.5), generator)
    lecture = torch.Generator().manual_seed(5)
    embedding = torch.randn((27, 10), generator=lecture)
    w1, _ = torch.randn((30, 8), generator=lecture), torch.randn(8, generator=lecture)
    w2, _ = torch.randn((8, 8), generator=lecture), torch.randn(8, generator=lecture)
    w3, _ = torch.randn((8, 27), generator=lecture) * 0.5, torch.randn(27, generator=lecture)
    assert torch.equal(model.embedding.weight, embedding)
    linears = (*(layer.linear for layer in model.layers), model.output.linear)
    for linear, weight in zip(linears, (w1, w2, w3), strict=True):
        assert torch.equal(linear.weight, weight.T)
        assert torch.count_nonzero(linear.bias) == 0
    assert torch.equal(generator.get_state(), lecture.get_state()), "the minibatches go on from here"


def test_a_linear_without_bias_draws_none() -> None:
    generator = torch.Generator().manual_seed(5)
    MLP(27, 3, ModelConfig(n_hidden=8, batchnorm="pre_output"), generator)
    lecture = torch.Generator().manual_seed(5)
    for shape in ((27, 10), (30, 8), (8, 27)):
        torch.randn(shape, generator=lecture)
    assert torch.equal(generator.get_state(), lecture.get_state())


def test_initialization_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = mlp(seed=3).state_dict()
    torch.manual_seed(12345)
    second = mlp(seed=3).state_dict()
    torch.set_rng_state(before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(mlp(seed=4).embedding.weight, first["embedding.weight"])


# --- the first loss --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every tenth of the embedded names: all 27 characters, a tenth of the time."""
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(load_words(DataConfig())[::10]), encoding="utf-8")
    return str(path)


def first_loss(config: Config) -> float:
    """The losses are those of the first minibatch."""
    _, module, datamodule = build(config)
    assert len(datamodule.vocabulary) == 27
    x, y = datamodule.minibatches(1, torch.device("cpu"))
    return cross_entropy(module(x[0]), y[0]).item()


UNHEALTHY = ("original", "clip")


@pytest.mark.parametrize("experiment", [each for each in EXPERIMENTS if each not in UNHEALTHY])
def test_first_loss_of_a_healthy_start(compose: Compose, names_file: str, experiment: str) -> None:
    config = compose(
        f"+experiment={experiment}", f"data.path={names_file}", "trainer=cpu", "callbacks=none", "logger=none"
    )
    assert first_loss(config) == pytest.approx(math.log(27), abs=0.1)


@pytest.mark.parametrize("experiment", UNHEALTHY)
def test_first_loss_of_the_lecture_s_starting_point(compose: Compose, experiment: str) -> None:
    assert first_loss(compose(f"+experiment={experiment}", "trainer=cpu", "callbacks=none", "logger=none")) > 20


def test_a_uniform_network_loses_exactly_ln_v(small: Compose) -> None:
    config = small("model.output_scale=0")
    datamodule = NamesDataModule(config.data, config.trainer, torch.Generator())
    x, y = datamodule.examples["train"]
    vocab_size = len(datamodule.vocabulary)
    loss = cross_entropy(mlp(vocab_size, output_scale=0.0)(x), y).item()
    assert loss == pytest.approx(math.log(vocab_size), rel=1e-6)
