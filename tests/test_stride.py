"""Unwatched steps agree with torch.optim, in every engine. All of them compiled: make test-compile."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from makemore_pl.choices import BATCHNORM_PLACEMENTS
from makemore_pl.config import ModelConfig
from makemore_pl.dropout import Dropout
from makemore_pl.model import MLP
from makemore_pl.stride import compiling
from makemore_pl.stride.finiteness import all_finite
from makemore_pl.stride.optimizers import Rule
from makemore_pl.stride.pure_step import functional_step
from makemore_pl.stride.unwatched_steps import (
    EAGER,
    MOST_STEPS,
    Engine,
    Unwatched,
    compiled_call_length,
    steps_in_memory,
)

K, B, BLOCK, VOCAB = 12, 8, 3, 9
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, alpha=0.9, weight_decay=0.01),
    "rmsprop_momentum": lambda p: RMSprop(p, lr=0.01, alpha=0.5, eps=1e-3, momentum=0.5),
}
CLIPPING = {"none": (None, "norm"), "norm": (0.5, "norm"), "value": (0.01, "value")}
CASES = list(itertools.product(OPTIMIZERS, BATCHNORM_PLACEMENTS, CLIPPING))
LRS = [0.1 / (step + 1) for step in range(K)]


def network(batchnorm: str, seed: int = 0, **settings: Any) -> MLP:
    config = ModelConfig(n_embd=4, n_hidden=16, n_layers=2, batchnorm=batchnorm, output_scale=0.3, **settings)
    return MLP(VOCAB, BLOCK, config, torch.Generator().manual_seed(seed))


def minibatches(k: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(VOCAB, (k, B, BLOCK), generator=generator)
    return x, torch.randint(VOCAB, (k, B), generator=generator)


def train(case: tuple[str, str, str], engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Parameters and buffers, optimizer state, and losses after two strides of K steps."""
    name, batchnorm, clipping = case
    model = network(batchnorm)
    optimizer = OPTIMIZERS[name](model.parameters())
    unwatched = Unwatched(model, optimizer, *CLIPPING[clipping], engine)
    x, y = minibatches(2 * K)
    losses = [unwatched(x[:K], y[:K], LRS, 0), unwatched(x[K:], y[K:], LRS, K)]
    state = {
        f"{i}.{key}": value
        for i, each in enumerate(optimizer.state.values())
        for key, value in each.items()
        if isinstance(value, Tensor)
    }
    return dict(model.state_dict()), state, torch.cat(losses)


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        # 24 steps of float32: rounding differs with the order of sums, and Adam's first steps divide it by small roots
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-3, atol=3e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(("name", "batchnorm", "clipping"), CASES)
def test_functional_step_agrees_with_torch_optim(name: str, batchnorm: str, clipping: str) -> None:
    model = network(batchnorm).double()
    optimizer = OPTIMIZERS[name](model.parameters())
    rule = Rule.of(optimizer, *CLIPPING[clipping])
    step = functional_step(network(batchnorm).double(), rule)
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = {slot: {n: torch.zeros_like(p) for n, p in parameters.items()} for slot in rule.slots}
    x, y = minibatches()
    beta1, beta2 = rule.betas
    losses = []
    for i, lr in enumerate(LRS):
        rates = torch.tensor([lr, 1 - beta1 ** (i + 1), (1 - beta2 ** (i + 1)) ** 0.5], dtype=torch.float64)
        parameters, buffers, state, loss = step(parameters, buffers, state, x[i], y[i], rates, {})
        losses.append(loss)
    reference = Unwatched(model, optimizer, *CLIPPING[clipping])(x, y, LRS, 0)
    # in double precision nothing but the order of sums is left between the two
    torch.testing.assert_close(torch.stack(losses), reference, rtol=1e-9, atol=1e-12)
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(parameters[n], parameter.detach(), rtol=1e-7, atol=1e-10)
        for slot in rule.slots:
            torch.testing.assert_close(state[slot][n], optimizer.state[parameter][slot], rtol=1e-7, atol=1e-10)
    for n, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[n], buffer, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("case", [("momentum", "pre_output", "norm")], ids="-".join)
def test_compiled_steps_agree_with_eager_ones(case: tuple[str, str, str]) -> None:
    assert_agree(case, K)


def assert_agree(case: tuple[str, str, str], call_length: int) -> None:
    eager, compiled = train(case, EAGER), train(case, Engine(call_length, compiled=True))
    for ours, theirs in zip(compiled[:2], eager[:2], strict=True):
        assert_close(ours, theirs)
    torch.testing.assert_close(compiled[2], eager[2], rtol=1e-4, atol=1e-5)


def test_calls_shorter_than_a_stride() -> None:
    # two compiled calls of 5 steps in each stride of 12, and 2 steps one by one
    assert_agree(("momentum", "pre_output", "norm"), 5)
    # in bounded pieces without a compiler too, and to the bit
    case = ("adamw", "pre", "none")
    assert torch.equal(train(case, Engine(5))[2], train(case, EAGER)[2])


def test_length_of_calls() -> None:
    lengths = {watch_every: compiled_call_length(watch_every) for watch_every in range(1, 3000)}
    assert lengths[1] == 0
    assert (lengths[2], lengths[100], lengths[1000]) == (1, 99, 111)
    assert max(lengths.values()) == MOST_STEPS
    assert all((k - 1) % n <= 11 for k, n in lengths.items() if n)
    assert compiled_call_length(1000, most=20) == 18


def test_minibatches_of_a_call_fit_in_memory() -> None:
    assert steps_in_memory(32 * 5 * 8) == MOST_STEPS
    assert steps_in_memory(65_536 * 5 * 8) == 51
    assert steps_in_memory(2**40) == 1


@pytest.mark.compile
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_compiled_case(case: tuple[str, str, str]) -> None:
    assert_agree(case, K)


def test_a_transform_over_many_configurations() -> None:
    """Vmap over parameters, buffers and rates trains several networks at once, each as if alone."""
    models = [network("pre", seed) for seed in range(3)]
    rule = Rule.of(SGD(models[0].parameters(), lr=0.1), None, "norm")
    step = functional_step(models[0], rule)
    parameters, buffers = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    rates = torch.tensor([[0.1, 1, 1], [0.01, 1, 1], [0.3, 1, 1]])
    x, y = minibatches(1)
    together = torch.vmap(
        step, in_dims=(0, 0, None, None, None, 0, None), out_dims=(0, 0, None, 0), randomness="different"
    )(parameters, buffers, {}, x[0], y[0], rates, {})
    for i, model in enumerate(models):
        alone = step(dict(model.named_parameters()), dict(model.named_buffers()), {}, x[0], y[0], rates[i], {})
        for part, each in zip(together[:2], alone[:2], strict=True):
            for name, tensor in each.items():
                torch.testing.assert_close(part[name][i], tensor, rtol=1e-5, atol=1e-6)


def test_hooks_do_not_see_unwatched_steps() -> None:
    model, seen = network("pre"), []
    model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    x, y = minibatches()
    Unwatched(model, SGD(model.parameters(), lr=0.1))(x, y, LRS, 0)
    assert not seen
    model(x[0])
    assert seen == [1]


def test_the_step_and_the_layer_where_it_stops_being_finite() -> None:
    model = network("none")
    optimizer = SGD(model.parameters(), lr=0.1)
    x, y = minibatches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # a learning rate of 1e38 takes the parameters to about 1e36 in step 100: step 101 overflows in the first product
    with pytest.raises(FloatingPointError, match=r"^step 101: the output of layers\.0\.linear is not finite\.$"):
        Unwatched(model, optimizer)(x, y, [1e38] * K, 100)
    model.load_state_dict(before)
    with torch.no_grad():
        model.output.linear.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^step 7: the parameter output\.linear\.weight is not finite\.$"):
        Unwatched(model, optimizer)(x, y, LRS, 7)


def test_what_it_can_not_step_is_refused() -> None:
    model = network("none")
    for optimizer in (Adagrad(model.parameters()), Adam(model.parameters(), amsgrad=True)):
        with pytest.raises(
            ValueError, match=r"^Unwatched steps know SGD, Adam, AdamW, RMSprop .*trainer.watch_every=1\.$"
        ):
            Unwatched(model, optimizer)


def test_dropout_drops_the_same_in_every_engine() -> None:
    results = []
    for engine in (EAGER, Engine(K, compiled=True)):
        torch.manual_seed(5)
        model = network("post", activation="gelu", dropout=0.2)
        x, y = minibatches()
        losses = Unwatched(model, SGD(model.parameters(), lr=0.1), engine=engine)(x, y, LRS, 0)
        results.append((losses, model.output.linear.weight.detach(), torch.get_rng_state()))
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(0)
    mask = Dropout(0.25).draw(torch.Size((1000, 4, 16)), torch.device("cpu"))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # 64,000 draws: the standard deviation of the share is 0.0017
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.007)


def test_large_numbers_are_finite() -> None:
    """Their squares are not, in float32."""
    assert all_finite([torch.tensor([3e38, -3e38]), torch.zeros(0)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.nan])])
    assert not all_finite([torch.tensor([-math.inf])])
    model = network("none")
    with torch.no_grad():
        model.output[0].weight[0] = 1e25  # that character's logit is huge or hugely negative, the loss finite
    x, y = minibatches()
    assert torch.isfinite(Unwatched(model, SGD(model.parameters(), lr=0.0))(x, y, LRS, 0)).all()


def test_packages_know_what_their_code_depends_on() -> None:
    cpu = torch.device("cpu")
    before, threads = compiling.surroundings(cpu), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert compiling.surroundings(cpu) != before
    finally:
        torch.set_num_threads(threads)
    assert compiling.surroundings(cpu) == before
