"""Unwatched steps agree with torch.optim, in every engine. All of them compiled: make test-compile."""

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop, Rprop
from torch.utils._python_dispatch import TorchDispatchMode

from makemore_pl.config import ModelConfig
from makemore_pl.config.choices import BATCHNORM_PLACEMENTS
from makemore_pl.dropout import Dropout
from makemore_pl.model import MLP
from makemore_pl.module import MakemoreModule
from makemore_pl.stride import compiling, recording, torch_internals
from makemore_pl.stride.finiteness import all_finite
from makemore_pl.stride.optimizers import METHODS, Rule
from makemore_pl.stride.pure_step import functional_step
from makemore_pl.stride.unwatched_steps import (
    EAGER,
    MOST_STEPS,
    Engine,
    Unwatched,
    compiled_call_length,
    steps_in_memory,
)
from makemore_pl.train import build

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
    settings = {"n_layers": 2} | settings
    config = ModelConfig(n_embd=4, n_hidden=16, batchnorm=batchnorm, output_scale=0.3, **settings)
    return MLP(VOCAB, BLOCK, config, torch.Generator().manual_seed(seed))


def minibatches(k: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(VOCAB, (k, B, BLOCK), generator=generator)
    return x, torch.randint(VOCAB, (k, B), generator=generator)


def train(
    case: tuple[str, str, str], engine: Engine, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Parameters and buffers, optimizer state, and losses after two strides of K steps."""
    name, batchnorm, clipping = case
    model = network(batchnorm).to(dtype)
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


def assert_agree(case: tuple[str, str, str], call_length: int) -> None:
    eager, compiled = train(case, EAGER), train(case, Engine(call_length, compiled=True))
    for ours, theirs in zip(compiled[:2], eager[:2], strict=True):
        assert_close(ours, theirs)
    torch.testing.assert_close(compiled[2], eager[2], rtol=1e-4, atol=1e-5)


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


def test_calls_shorter_than_a_stride() -> None:
    """Two compiled calls of 5 steps in each stride of 12, and 2 steps one by one."""
    assert_agree(("momentum", "pre_output", "norm"), 5)
    # in bounded pieces without a compiler too, and to the bit
    case = ("adamw", "pre", "none")
    assert torch.equal(train(case, Engine(5))[2], train(case, EAGER)[2])


def test_optimizers_compiled_in_one_graph() -> None:
    """Side by side in one step, which costs one run of the C++ compiler; sgd, momentum and adamw have tests elsewhere.

    Optimizer state starts as many equal zeros. torch's scan has had trouble with equal carries and with gradients
    through it (pytorch #153679, #158168, #184528, #195977); here gradients are formed inside of the step.
    """
    names = ("nesterov", "adam", "rmsprop", "rmsprop_momentum")
    models = {name: network("none", n_layers=1) for name in names}
    optimizers = {name: OPTIMIZERS[name](model.parameters()) for name, model in models.items()}
    clipping = dict(zip(names, itertools.cycle(CLIPPING.values()), strict=False))
    rules = {name: Rule.of(optimizer, *clipping[name]) for name, optimizer in optimizers.items()}
    steps = {name: functional_step(models[name], rules[name]) for name in names}

    def step(*arguments: Any) -> tuple[Any, ...]:
        *carries, x, y, rates = arguments
        done = [
            steps[name](*carry, x, y, rates[i], {}) for i, (name, carry) in enumerate(zip(steps, carries, strict=True))
        ]
        return (*(tuple(new) for *new, _ in done), torch.stack([loss for *_, loss in done]))

    x, y = minibatches(3)
    rates = torch.tensor(
        [
            [[lr, 1 - rule.betas[0] ** t, (1 - rule.betas[1] ** t) ** 0.5] for rule in rules.values()]
            for t, lr in ((1, 0.1), (2, 0.05), (3, 0.02))
        ]
    )
    carry = tuple(
        (
            {n: p.detach().clone() for n, p in model.named_parameters()},
            {n: b.clone() for n, b in model.named_buffers()},
            {slot: {n: torch.zeros_like(p) for n, p in model.named_parameters()} for slot in rules[name].slots},
        )
        for name, model in models.items()
    )
    leaves, losses = compiling.compiled_scan(
        compiling.Scan("every optimizer", step, carry, (x, y, rates), (x, y, rates))
    )(carry, (x, y, rates))
    left = iter(leaves)
    for i, (name, model) in enumerate(models.items()):
        expected = Unwatched(model, optimizers[name], *clipping[name])(x, y, [0.1, 0.05, 0.02], 0)
        torch.testing.assert_close(losses[:, i], expected, rtol=1e-4, atol=1e-5)
        of_torch = [*model.parameters(), *model.buffers()]
        of_torch += [optimizers[name].state[p][slot] for slot in rules[name].slots for p in model.parameters()]
        for theirs in of_torch:
            torch.testing.assert_close(next(left), theirs.detach(), rtol=1e-3, atol=3e-5)
    assert next(left, None) is None


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
def test_compiled_in_bfloat16() -> None:
    x, y = minibatches()
    losses = []
    for engine in (EAGER, Engine(K, compiled=True)):
        model = network("pre")
        losses.append(
            Unwatched(model, SGD(model.parameters(), lr=0.1), None, "norm", engine, torch.bfloat16)(x, y, LRS, 0)
        )
    # bfloat16 has 8 bits: 0.4 %
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=1e-2)


@pytest.mark.compile
def test_networks_of_one_shape_and_two_types_in_one_process() -> None:
    case = ("sgd", "pre", "none")
    for dtype, rtol in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        compiled, eager = train(case, Engine(K, compiled=True), dtype), train(case, EAGER, dtype)
        torch.testing.assert_close(compiled, eager, rtol=rtol, atol=rtol / 30)


@pytest.mark.compile
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_compiled_case(case: tuple[str, str, str]) -> None:
    """In float64, where nothing but the order of sums is left between the two."""
    eager = train(case, EAGER, torch.float64)
    compiled = train(case, Engine(K, compiled=True), torch.float64)
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-12)


def test_a_transform_over_many_configurations() -> None:
    """With vmap over parameters, buffers and rates several networks train at once, with the results of single ones."""
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
    known = ", ".join(method.optimizer.__name__ for method in METHODS.values())
    for optimizer in (Rprop(model.parameters()), Adam(model.parameters(), amsgrad=True)):
        with pytest.raises(ValueError, match=rf"^Unwatched steps know {known} .*trainer.watch_every=1\.$"):
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


# --- the host does not wait ------------------------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: reading a tensor's value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2"):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clipping", CLIPPING)
def test_the_host_reads_one_number_a_call(clipping: str) -> None:
    """Adam and RMSprop read their step count too, which torch.optim keeps on the CPU."""
    model = network("pre", dropout=0.2)
    unwatched = Unwatched(model, OPTIMIZERS["momentum"](model.parameters()), *CLIPPING[clipping], Engine(5))
    x, y = minibatches()
    with HostReads() as host:
        unwatched(x, y, LRS, 0)
    assert host.reads == ["_local_scalar_dense"] * 3, "12 steps are calls of 5, 5 and 2"


# --- watched and unwatched -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_bits_do_not_depend_on_what_is_watched(small: Compose, tmp_path: Path, precision: str, optimizer: str) -> None:
    states = []
    for watch_every in (1, 7):
        torch.manual_seed(11)
        trainer, module, datamodule = build(
            small(
                f"optim={optimizer}",
                "model.dropout=0.3",
                "model.batchnorm=pre",
                f"trainer.precision={precision}",
                f"trainer.watch_every={watch_every}",
                run_dir=tmp_path / str(watch_every),
            )
        )
        trainer.fit(module, datamodule=datamodule)
        states.append({**module.state_dict(), "random numbers": torch.get_rng_state()})
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())


def test_the_remedy_that_a_refusal_names_works(small: Compose, tmp_path: Path) -> None:
    class WithRprop(MakemoreModule):
        def configure_optimizers(self) -> Optimizer:
            half = list(self.model.parameters())
            return Rprop([{"params": half[:2]}, {"params": half[2:]}], lr=0.05)

    for watch_every, refused in ((5, True), (1, False)):
        config = small(f"trainer.watch_every={watch_every}", run_dir=tmp_path / str(watch_every))
        trainer, module, datamodule = build(config)
        module.__class__ = WithRprop
        if refused:
            with pytest.raises(ValueError, match=r"not Rprop as set up here: use trainer\.watch_every=1\.$"):
                trainer.fit(module, datamodule=datamodule)
        else:
            trainer.fit(module, datamodule=datamodule)
            assert trainer.global_step == config.trainer.max_steps
            assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {config.optim.lr * 0.1}


# --- where compiling does not work -----------------------------------------------------------------------------------


def step_with(engine: Engine, activation: str) -> tuple[Unwatched, Tensor]:
    torch.manual_seed(3)
    model = network("none", dropout=0.5, activation=activation)
    unwatched = Unwatched(model, SGD(model.parameters(), lr=0.1), engine=engine)
    x, y = minibatches()
    return unwatched, unwatched(x, y, LRS, 0)


def assert_runs_eagerly_or_refuses(activation: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    _, expected = step_with(Engine(K), activation)
    with caplog.at_level("WARNING"):
        unwatched, losses = step_with(Engine(K, compiled=True, falls_back=True), activation)
    assert torch.equal(losses, expected), "masks too are those of the eager engine"
    (sentence,) = caplog.messages
    assert sentence == f"{said} Unwatched steps run in the slower engine=eager."
    with caplog.at_level("WARNING"):
        x, y = minibatches()
        unwatched(x, y, LRS, K)
    assert len(caplog.messages) == 1, "said once"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole sentence is compared)
        step_with(Engine(K, compiled=True), activation)
    assert str(caught.value) == said


def test_a_torch_that_lacks_a_name_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor

    monkeypatch.delattr(torch._inductor, "aoti_compile_and_package")
    said = (
        "Compiling the steps failed (ImportError: cannot import name 'aoti_compile_and_package' from 'torch._inductor' "
        f"({torch._inductor.__file__})): use trainer.engine=eager."
    )
    assert_runs_eagerly_or_refuses("silu", said, caplog)


def test_a_compiler_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, package_directory: Path
) -> None:
    # inductor has an option that makes wrong code
    monkeypatch.setitem(torch_internals.INDUCTOR, "cpp.inject_relu_bug_TESTING_ONLY", "accuracy")
    # and one that this torch does not know is left out: it would fail with another error
    monkeypatch.setitem(torch_internals.INDUCTOR, "aot_inductor.of_another_torch", True)
    _, expected = step_with(Engine(K), "relu")
    with caplog.at_level("WARNING"):
        _, losses = step_with(Engine(K, compiled=True, falls_back=True), "relu")
    assert torch.equal(losses, expected)
    (sentence,) = (record.getMessage() for record in caplog.records if record.name.startswith("makemore_pl"))
    assert sentence.startswith("Compiling the steps failed (ArithmeticError: they differ from the eager ones by ")
    assert not list(package_directory.rglob("*.pt2")), "it is not kept either"


def again(function: Callable[[], list[Tensor]], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
    """In the place of torch.cuda.graph: runs the function again, into the tensors of its first result."""
    result = function()
    return result, lambda: torch_internals.foreach_copy_(result, function())


def not_recorded(scan: compiling.Scan) -> compiling.CompiledScan:
    def call(carry: Any, xs: Any) -> tuple[list[Tensor], Tensor]:
        *leaves, ys = compiling.one_by_one(scan.step, carry, xs)
        return leaves, ys

    return call


@pytest.mark.parametrize(("name", "clipping"), [*zip(OPTIMIZERS, itertools.cycle(CLIPPING), strict=False)])
def test_a_recording_has_the_bits_of_the_steps(monkeypatch: pytest.MonkeyPatch, name: str, clipping: str) -> None:
    """Calls of 5 steps, each with new minibatches and rates in the tensors of the recording, and 2 steps one by one."""
    monkeypatch.setattr(recording, "_last", {})
    case = (name, "pre_output", clipping)
    one_call = partial(recording.recorded_scan, record=again)
    recorded = train(case, Engine(5, compiled=True, one_call=one_call))
    expected = train(case, Engine(5, compiled=True, one_call=not_recorded))
    for ours, theirs in zip(recorded[:2], expected[:2], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(recorded[2], expected[2])
    torch.testing.assert_close(recorded[2], train(case, EAGER)[2], rtol=1e-4, atol=1e-5)


def test_what_can_not_be_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Recording the steps failed \(.*\): use trainer\.engine=eager\.$"):
        step_with(Engine(K, compiled=True, one_call=recording.recorded_scan), "tanh")
