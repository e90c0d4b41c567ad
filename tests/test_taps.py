"""Run alone: pytest tests/test_taps.py"""

import re
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from makemore_pl.diagnostics.taps import (
    ActivationTap,
    BatchNormTap,
    ParameterSnapshot,
    is_compiled,
    select,
)


def mlp(seed: int = 0) -> nn.Sequential:
    """Everything whose state watching could disturb: an embedding, BatchNorm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            embedding=nn.Embedding(27, 4),
            flatten=nn.Flatten(),
            linear1=nn.Linear(12, 16, bias=False),
            norm=nn.BatchNorm1d(16),
            tanh1=nn.Tanh(),
            dropout=nn.Dropout(0.3),
            linear2=nn.Linear(16, 16),
            tanh2=nn.Tanh(),
            output=nn.Linear(16, 27),
        )
    )


def conv(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 4 * 4, 5)
    )


def mlp_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(27, (8, 3), generator=generator), torch.randint(27, (8,), generator=generator)


def conv_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(5, (8,), generator=generator)


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())


def tanhs(module: nn.Module) -> ActivationTap:
    return ActivationTap(select(module, (nn.Tanh,)))


class TestActivationTap:
    def test_records_input_output_and_gradient(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                output.retain_grad()
                seen[name] = args[0], output

            return hook

        for name in ("tanh1", "tanh2"):
            net.get_submodule(name).register_forward_hook(keep(name))
        with tanhs(net) as tap:
            backward(functional.cross_entropy(net(x), y))
        assert tap.calls == {"tanh1": 1, "tanh2": 1}
        for name, (preactivation, activation) in seen.items():
            assert activation.grad is not None
            assert torch.equal(tap.preactivation[name], preactivation)
            assert torch.equal(tap.activation[name], activation)
            assert torch.equal(tap.activation_grad[name], activation.grad)
            for recorded in (tap.preactivation[name], tap.activation[name], tap.activation_grad[name]):
                assert not recorded.requires_grad
                assert recorded.grad_fn is None

    def test_stays_readable_until_cleared_or_opened_again(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        tap = tanhs(net)
        with tap:
            backward(functional.cross_entropy(net(x), y))
        assert set(tap.activation) == set(tap.activation_grad) == {"tanh1", "tanh2"}
        net(x)
        assert tap.calls["tanh1"] == 1
        tap.clear()
        assert not tap.preactivation | tap.activation | tap.activation_grad
        assert tap.calls == {"tanh1": 0, "tanh2": 0}
        with tap:
            net(x)
        tap.open()
        assert not tap.activation
        assert tap.calls == {"tanh1": 0, "tanh2": 0}
        tap.close()

    def test_hooks_are_gone_after_exit(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        with tanhs(net):
            assert hooks_on(net) == 4
            loss = functional.cross_entropy(net(x), y)
        assert hooks_on(net) == 0
        backward(loss)

    def test_a_gradient_after_close_is_not_recorded(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        with tanhs(net) as tap:
            loss = functional.cross_entropy(net(x), y)
        backward(loss)
        assert tap.activation
        assert not tap.activation_grad

    def test_hooks_are_gone_after_an_exception(self) -> None:
        net, (x, _) = mlp(), mlp_batch()
        with pytest.raises(IndexError), tanhs(net):
            net(x + 27)
        assert hooks_on(net) == 0

    def test_other_hooks_are_left_alone(self) -> None:
        net, calls = mlp(), []
        net.get_submodule("tanh1").register_forward_hook(lambda *_: calls.append(1))
        with tanhs(net):
            net(mlp_batch()[0])
        assert hooks_on(net) == 1
        assert calls == [1]

    def test_opening_and_closing_twice_is_the_same_as_once(self) -> None:
        net, (x, _) = mlp(), mlp_batch()
        tap = tanhs(net)
        tap.close()
        tap.open()
        tap.open()
        assert hooks_on(net) == 4
        net(x)
        with tap:
            assert tap.calls["tanh1"] == 1  # opening an open tap keeps what it has
        tap.close()
        assert hooks_on(net) == 0
        assert tap.calls["tanh1"] == 1

    def test_ignores_evaluation(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        with tanhs(net) as tap:
            net.eval()
            backward(functional.cross_entropy(net(x), y))
            assert tap.calls == {"tanh1": 0, "tanh2": 0}
            assert not tap.preactivation | tap.activation | tap.activation_grad
            net.train()
            backward(functional.cross_entropy(net(x), y))
            before = {name: recorded.clone() for name, recorded in tap.activation_grad.items()}
            net.eval()
            backward(functional.cross_entropy(net(x.flip(0)), y))
            assert tap.calls == {"tanh1": 1, "tanh2": 1}
            assert all(torch.equal(tap.activation_grad[name], before[name]) for name in before)

    def test_without_grad_there_are_activations_only(self) -> None:
        net, (x, _) = mlp(), mlp_batch()
        with tanhs(net) as tap, torch.no_grad():
            net(x)
        assert set(tap.activation) == {"tanh1", "tanh2"}
        assert not tap.activation_grad

    def test_convolution_with_inplace_relu(self) -> None:
        net, (x, y) = conv(), conv_batch()
        with ActivationTap(select(net)) as tap:
            backward(functional.cross_entropy(net(x), y))
        reference, out = conv(), x
        outputs = []
        for module in reference:
            out = out.relu() if isinstance(module, nn.ReLU) else module(out)
            out.retain_grad()
            outputs.append(out)
        backward(functional.cross_entropy(out, y))
        for name, output in zip(tap.modules, outputs, strict=True):
            # The ReLU overwrites BatchNorm's output in place; the record is from before.
            assert torch.equal(tap.activation[name], output)
            assert output.grad is not None
            assert torch.equal(tap.activation_grad[name], output.grad)
        assert tap.activation["2"].shape == (8, 3, 4, 4)
        assert torch.equal(tap.preactivation["2"], tap.activation["1"])
        assert (tap.preactivation["2"] < 0).any()

    def test_of_a_reused_module_the_last_call_counts(self) -> None:
        torch.manual_seed(0)

        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.Tanh()

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.act(self.second(self.act(self.first(x))))
                return out

        net, x = Shared(), torch.randn(5, 4)
        with tanhs(net) as tap:
            out = net(x)
            backward(out.square().sum())
        assert tap.calls == {"act": 2}
        assert torch.equal(tap.activation["act"], out)
        assert torch.equal(tap.preactivation["act"], net.second(net.first(x).tanh()))
        # Backward reaches the first call, of shape (5, 4), last: its gradient must not displace this one.
        assert torch.equal(tap.activation_grad["act"], 2 * out)

    def test_a_new_forward_drops_the_gradient_of_the_old(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        with tanhs(net) as tap:
            backward(functional.cross_entropy(net(x), y))
            net(x)
            assert not tap.activation_grad

    def test_micro_batches_leave_the_last(self) -> None:
        net, (x, y) = mlp(), mlp_batch()
        with tanhs(net) as tap:
            for part in (slice(0, 4), slice(4, 8)):
                backward(functional.cross_entropy(net(x[part]), y[part]))
        assert tap.calls == {"tanh1": 2, "tanh2": 2}
        assert tap.activation_grad["tanh1"].shape == (4, 16)

    def test_records_are_safe_from_inplace_changes_to_grads(self) -> None:
        # The sum passes its gradient on unchanged, so that the leaf's .grad may share its memory.
        leaf, act = nn.Parameter(torch.zeros(3)), nn.Identity()
        with ActivationTap({"act": act}) as tap:
            backward(act(leaf + 0).sum() * 2)
            assert leaf.grad is not None
            leaf.grad.zero_()
        assert tap.activation_grad["act"].tolist() == [2, 2, 2]

    def test_keyword_input_and_tuple_output(self) -> None:
        torch.manual_seed(0)
        rnn, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
        with ActivationTap({"rnn": rnn}) as tap:
            out, _ = rnn(input=x)
            backward(out.sum())
        assert torch.equal(tap.preactivation["rnn"], x)
        assert torch.equal(tap.activation["rnn"], out)
        assert torch.equal(tap.activation_grad["rnn"], torch.ones_like(out))

    def test_module_without_tensors(self) -> None:
        class Names(nn.Module):
            def forward(self, name: str) -> str:
                return name.lower()

        names = Names()
        with ActivationTap({"names": names}) as tap:
            names("Emma")
        assert tap.calls == {"names": 1}
        assert not tap.activation

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing_still_trains_the_same(self, reentrant: bool) -> None:
        def grads(watched: bool) -> list[Tensor]:
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
            x = torch.randn(5, 3, requires_grad=True)
            tap = tanhs(net)
            if watched:
                tap.open()
            backward(checkpoint(net, x, use_reentrant=reentrant).sum())
            if watched:
                tap.close()
                assert tap.calls == {"1": 2}
                assert torch.equal(tap.activation["1"], net[:2](x))
            return [p.grad for p in net.parameters() if p.grad is not None]

        for watched, bare in zip(grads(True), grads(False), strict=True):
            assert torch.equal(watched, bare)

    def test_no_modules(self) -> None:
        with pytest.raises(ValueError, match=r"nothing to watch: no modules were given, choose some with select\(\)"):
            ActivationTap({})


@pytest.mark.parametrize(("build", "batch"), [(mlp, mlp_batch), (conv, conv_batch)])
def test_watching_changes_no_bit_of_training(
    build: Callable[[], nn.Sequential], batch: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    def train(watched: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        net, (x, y) = build(), batch()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        activations = ActivationTap(select(net))
        norms = BatchNormTap(select(net, (_BatchNorm,)))
        trace = []
        for step in range(6):
            if watched and step % 2 == 0:
                activations.open()
                norms.open()
                snapshot = ParameterSnapshot(dict(net.named_parameters()))
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), y)
            backward(loss)
            trace += [loss.detach()] + [p.grad.clone() for p in net.parameters() if p.grad is not None]
            optimizer.step()
            if watched and step % 2 == 0:
                assert activations.activation_grad
                assert norms.statistics
                assert snapshot.updates()
                activations.close()
                norms.close()
            trace.append(torch.get_rng_state())
        return trace, net.state_dict()

    (watched, state), (bare, bare_state) = train(True), train(False)
    assert len(watched) == len(bare) > 20
    assert all(torch.equal(a, b) for a, b in zip(watched, bare, strict=True))
    assert all(torch.equal(state[name], bare_state[name]) for name in bare_state)


class TestBatchNormTap:
    @pytest.mark.parametrize(
        ("norm", "shape", "n"),
        [
            (nn.BatchNorm1d(3), (8, 3), 8),
            (nn.BatchNorm1d(3), (8, 3, 5), 40),
            (nn.BatchNorm2d(3), (8, 3, 2, 5), 80),
            (nn.BatchNorm3d(3), (8, 3, 2, 5, 2), 160),
        ],
    )
    def test_batch_statistics_and_running_statistics_from_before(
        self, norm: _BatchNorm, shape: tuple[int, ...], n: int
    ) -> None:
        torch.manual_seed(0)
        x = 3 + 2 * torch.randn(shape, dtype=torch.float64)
        norm.double()
        norm(torch.randn(shape, dtype=torch.float64))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        running_mean, running_var = norm.running_mean.clone(), norm.running_var.clone()
        with BatchNormTap({"norm": norm}) as tap:
            out = norm(x)
        found = tap.statistics["norm"]
        values = x.transpose(0, 1).flatten(1)

        def close(a: Tensor | None, b: Tensor) -> None:
            # Sums of at most 160 values of about 4 in float64, in another order.
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)

        close(found.batch_mean, values.mean(1))
        close(found.batch_var, values.var(1, correction=0))
        assert found.n == n
        assert torch.equal(found.running_mean, running_mean)
        assert torch.equal(found.running_var, running_var)
        assert not torch.equal(norm.running_mean, running_mean)
        # They are what BatchNorm itself used: it normalises by them, and mixes them into the running statistics.
        channel = (None, slice(None), *[None] * (x.ndim - 2))
        expected = (x - found.batch_mean[channel]) / (found.batch_var[channel] + norm.eps).sqrt()
        torch.testing.assert_close(out.detach(), expected, rtol=1e-12, atol=1e-12)
        close(norm.running_mean, 0.9 * running_mean + 0.1 * found.batch_mean)
        unbiased = found.batch_var * n / (n - 1)
        close(norm.running_var, 0.9 * running_var + 0.1 * unbiased)

    def test_half_precision_is_summed_in_float32(self) -> None:
        # Under autocast BatchNorm gets float16 and keeps float32 statistics; the squares of 300 overflow float16.
        norm = nn.BatchNorm1d(2)
        x = torch.tensor([[300.0, 0.0], [-300.0, 2.0]], dtype=torch.float16)
        with BatchNormTap({"norm": norm}) as tap:
            norm(x)
        assert tap.statistics["norm"].batch_var.tolist() == [90000, 1]

    def test_ignores_evaluation(self) -> None:
        norm = nn.BatchNorm1d(3).eval()
        with BatchNormTap({"norm": norm}) as tap:
            norm(torch.randn(4, 3))
        assert tap.calls == {"norm": 0}
        assert not tap.statistics

    def test_the_last_call_counts(self) -> None:
        norm = nn.BatchNorm1d(3)
        with BatchNormTap({"norm": norm}) as tap:
            norm(torch.randn(4, 3))
            assert norm.running_mean is not None
            running_mean = norm.running_mean.clone()
            norm(torch.ones(6, 3))
        assert tap.calls == {"norm": 2}
        assert tap.statistics["norm"].n == 6
        assert tap.statistics["norm"].batch_mean.tolist() == [1, 1, 1]
        assert torch.equal(tap.statistics["norm"].running_mean, running_mean)
        tap.clear()
        assert not tap.statistics
        assert tap.calls == {"norm": 0}

    def test_without_running_statistics_there_is_nothing_to_compare(self) -> None:
        norm = nn.BatchNorm1d(3, track_running_stats=False)
        with BatchNormTap({"norm": norm}) as tap:
            norm(torch.randn(4, 3))
        assert tap.calls == {"norm": 1}
        assert not tap.statistics

    def test_hooks_are_gone_after_an_exception(self) -> None:
        norm = nn.BatchNorm1d(3)
        with pytest.raises(ValueError, match="more than 1 value per channel"), BatchNormTap({"norm": norm}):
            norm(torch.randn(1, 3))
        assert hooks_on(norm) == 0

    def test_other_modules_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tanh1 is not a BatchNorm but Tanh"):
            BatchNormTap({"tanh1": nn.Tanh()})


class TestParameterSnapshot:
    def test_updates_are_what_was_added(self) -> None:
        p, q = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[4.0]]))
        snapshot = ParameterSnapshot({"p": p, "q": q})
        assert all(not update.any() for update in snapshot.updates().values())
        with torch.no_grad():
            p.add_(torch.tensor([0.5, -0.25]))
            q.mul_(2)
        updates = snapshot.updates()
        assert {name: update.tolist() for name, update in updates.items()} == {"p": [0.5, -0.25], "q": [[4]]}
        assert not any(update.requires_grad for update in updates.values())

    def test_no_parameters(self) -> None:
        with pytest.raises(ValueError, match="nothing to watch: no parameters were given"):
            ParameterSnapshot({})


class TestSelect:
    def test_by_type(self) -> None:
        net = mlp()
        assert select(net, (nn.Tanh,)) == {"tanh1": net.tanh1, "tanh2": net.tanh2}
        assert list(select(net, (nn.Tanh, _BatchNorm))) == ["norm", "tanh1", "tanh2"]

    def test_by_name(self) -> None:
        assert list(select(mlp(), pattern="2$")) == ["linear2", "tanh2"]
        assert list(select(nn.Sequential(mlp(), mlp(1)), pattern=r"^1\..*norm")) == ["1.norm"]

    def test_by_both(self) -> None:
        assert list(select(mlp(), (nn.Linear,), "1")) == ["linear1"]

    def test_by_neither_is_every_submodule(self) -> None:
        assert list(select(mlp())) == [name for name, _ in mlp().named_children()]

    def test_a_shared_module_appears_once(self) -> None:
        tanh = nn.Tanh()
        assert list(select(nn.Sequential(tanh, nn.Linear(2, 2), tanh), (nn.Tanh,))) == ["0"]

    @pytest.mark.parametrize(
        ("types", "pattern", "message"),
        [
            ((nn.ReLU,), None, "nothing matched ReLU in Sequential, which has 0 (Linear), 1 (Tanh)"),
            ((nn.ReLU, nn.GELU), None, "nothing matched ReLU or GELU in Sequential, which has 0 (Linear), 1 (Tanh)"),
            ((), "tanh", "nothing matched name matching 'tanh' in Sequential, which has 0 (Linear), 1 (Tanh)"),
            ((nn.ReLU,), "1", "nothing matched ReLU with name matching '1' in Sequential"),
        ],
    )
    def test_nothing_matched(self, types: tuple[type[nn.Module], ...], pattern: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            select(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), types, pattern)

    def test_nothing_matched_in_a_large_module_stays_one_sentence(self) -> None:
        with pytest.raises(ValueError, match=r"19 \(Tanh\) and 5 more$"):
            select(nn.Sequential(*[nn.Tanh() for _ in range(25)]), (nn.ReLU,))

    def test_nothing_to_match(self) -> None:
        with pytest.raises(ValueError, match="nothing matched any module in Tanh, which has no submodules"):
            select(nn.Tanh())

    def test_broken_pattern(self) -> None:
        with pytest.raises(ValueError, match=r"pattern '\(' is not a regular expression: missing \)"):
            select(mlp(), pattern="(")


class TestCompiled:
    def test_plain(self) -> None:
        assert not is_compiled(mlp())

    def test_compiled_in_any_way_at_any_depth(self) -> None:
        method = mlp()
        method.compile(backend="eager")
        forward = mlp()
        forward.forward = torch.compile(forward.forward, backend="eager")  # type: ignore[method-assign]
        wrapped = torch.compile(mlp(), backend="eager")
        for compiled in (wrapped, method, forward):
            assert isinstance(compiled, nn.Module)
            assert is_compiled(compiled)
            assert is_compiled(nn.Sequential(nn.Tanh(), compiled))
            with pytest.raises(ValueError, match=r"hooks added to a compiled module are ignored .*: watch the module"):
                select(compiled, (nn.Tanh,))
            with pytest.raises(ValueError, match=r"hooks added to a compiled module are ignored .*: net$"):
                ActivationTap({"net": compiled, "other": nn.Tanh()})

    def test_uncompiled_on_purpose(self) -> None:
        assert not is_compiled(torch.compiler.disable(mlp()))

    def test_the_reason_still_holds(self) -> None:
        # Should PyTorch one day honour hooks added after compilation, this fails and the refusal can go.
        net, (x, _) = mlp(), mlp_batch()
        compiled = torch.compile(net, backend="eager")
        compiled(x)
        with tanhs(net) as tap:
            compiled(x)
        assert tap.calls == {"tanh1": 0, "tanh2": 0}
