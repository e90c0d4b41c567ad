"""Runs unwatched steps: many optimizer steps in one call, either in a simple loop or as one graph."""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from makemore_pl.dropout import Dropout
from makemore_pl.module_copy import copy_without_hooks
from makemore_pl.stride import torch_internals
from makemore_pl.stride.compiling import CompiledScan, CompilingFailed, Scan, compiled_scan
from makemore_pl.stride.finiteness import all_finite, first_not_finite
from makemore_pl.stride.optimizers import CLIPPING, Rule, State, Tensors
from makemore_pl.stride.pinned import send
from makemore_pl.stride.pure_step import functional_step

log = logging.getLogger(__name__)

MOST_STEPS = 150
"""The largest number of steps in one call, if memory allows. With it few steps of a stride are left over."""
MOST_BYTES = 2**27
"""Bound of the memory in bytes for minibatches that are drawn at once, and for minibatches and masks of one call."""


class Engine(NamedTuple):
    """How unwatched steps run."""

    call_length: int = MOST_STEPS
    """Number of steps in one call."""
    compiled: bool = False
    """Whether a call of exactly call_length steps is one graph. Shorter calls always run step by step."""
    falls_back: bool = False
    """What to do if compiling fails: warn and run step by step (True), or raise ValueError (False)."""
    calls_in_slice: int = 1
    """Number of calls whose minibatches are drawn at once."""
    one_call: Callable[[Scan], CompiledScan] = compiled_scan
    """Makes the graph, which is a compiled package or a recording by CUDA."""


EAGER = Engine()


def steps_in_memory(bytes_of_step: int) -> int:
    """How many steps a call can have so that their minibatches and masks take at most MOST_BYTES; 1 to MOST_STEPS."""
    return max(1, min(MOST_STEPS, MOST_BYTES // bytes_of_step))


def compiled_call_length(watch_every: int, most: int = MOST_STEPS) -> int:
    """How many steps a compiled call should have so that few steps of a stride are left over; 0 if none fit."""
    lengths = range(1, min(watch_every - 1, most) + 1)
    # a single step takes about as long as the overhead of two calls
    return min(lengths, key=lambda n: 2 * ((watch_every - 1) % n) + (watch_every - 1) // n, default=0)


class Unwatched:
    """Runs unwatched steps on a live model and its optimizer, updating parameters, buffers and state in place.

    Hooks on the model are not called. On a GPU the host waits once a call, to learn whether all numbers are finite.

    Args:
        model: (B, block_size) -> (B, vocab_size) logits.
        optimizer: one of METHODS in optimizers.py, with one parameter group.
        clip_value, clip_algorithm: Lightning's gradient_clip_val and gradient_clip_algorithm.
        engine: whether steps are compiled, and how many of them are in one call.
        autocast: the dtype for torch.autocast; None for no autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        clip_value: float | None = None,
        clip_algorithm: str = "norm",
        engine: Engine = EAGER,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.rule = Rule.of(optimizer, clip_value, clip_algorithm)
        self.model = copy_without_hooks(model, share_tensors=True)
        self.dropouts = {name: module for name, module in self.model.named_modules() if isinstance(module, Dropout)}
        self.optimizer = optimizer
        self.engine = engine
        self.autocast = autocast
        self.name = repr((self.model, self.rule, autocast))
        self.parameters = dict(self.model.named_parameters())
        self.buffers = dict(self.model.named_buffers())
        self.dropout_shapes: dict[tuple[int, ...], dict[str, torch.Size]] = {}

    def __call__(self, x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
        """Take k steps on x (k, B, block_size), y (k, B) with k learning rates; returns the k losses.

        Raises:
            FloatingPointError: a loss or a parameter is not finite; the message names step and layer. `first` is the
                number of the first step.
            ValueError: compiling fails and the engine does not fall back.
        """
        self.model.train()
        length = self.engine.call_length
        calls = [slice(done, done + length) for done in range(0, len(lrs), length)]
        # turn off Lightning's autocast, which would include gradients and optimizer
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([self._call(x[call], y[call], lrs[call], first + call.start) for call in calls])

    def _call(self, x: Tensor, y: Tensor, lrs: list[float], first: int) -> Tensor:
        before = [tensor.detach().clone() for tensor in self._tensors()]
        random_numbers = self._generator_state(x.device)
        losses = self._losses(x, y, lrs)
        if not all_finite([losses, *self.parameters.values()]):
            with torch.no_grad():
                for tensor, old in zip(self._tensors(), before, strict=False):
                    tensor.copy_(old)
            self._set_generator_state(random_numbers, x.device)
            self._replay(x, y, lrs, first, losses)
        return losses

    def _losses(self, x: Tensor, y: Tensor, lrs: list[float]) -> Tensor:
        if not self.engine.compiled or len(lrs) != self.engine.call_length:
            return self._eager(x, y, lrs)
        random_numbers = self._generator_state(x.device)
        try:
            return self._compiled(x, y, lrs)
        except CompilingFailed as error:
            if not self.engine.falls_back:
                raise
            log.warning("%s Unwatched steps run in the slower engine=eager.", error)
        self.engine = self.engine._replace(compiled=False)
        self._set_generator_state(random_numbers, x.device)
        return self._eager(x, y, lrs)

    def _tensors(self) -> list[Tensor]:
        tensors = [*self.parameters.values(), *self.buffers.values()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return tensors

    def _generator_state(self, device: torch.device) -> Tensor | None:
        """The state of the generator that draws dropout's masks; None if there is no dropout."""
        if not self.dropouts:
            return None
        return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)

    def _set_generator_state(self, state: Tensor | None, device: torch.device) -> None:
        if state is not None and device.type == "cpu":
            torch.set_rng_state(state)
        elif state is not None:
            torch.cuda.set_rng_state(state, device)

    def _replay(self, x: Tensor, y: Tensor, lrs: list[float], first: int, losses: Tensor) -> NoReturn:
        """Take the same steps again, one by one, up to the first number that is not finite, and raise with its name."""
        for i in range(len(lrs)):
            random_numbers = self._generator_state(x.device)
            if found := first_not_finite(self.model, x[i], y[i]):
                raise FloatingPointError(f"step {first + i}: {found} is not finite.")
            self._set_generator_state(random_numbers, x.device)
            self._eager(x[i : i + 1], y[i : i + 1], lrs[i : i + 1])
        if found := first_not_finite(self.model, x[-1], y[-1]):
            raise FloatingPointError(f"step {first + len(lrs)}: {found} is not finite.")
        step = first + int(torch.isfinite(losses).logical_not().nonzero().min())
        raise FloatingPointError(f"step {step}: the loss is not finite.")

    @torch.enable_grad()
    def _eager(self, x: Tensor, y: Tensor, lrs: list[float]) -> Tensor:
        parameters: list[Tensor] = list(self.parameters.values())
        losses = []
        for x_of_step, y_of_step, lr in zip(x.unbind(), y.unbind(), lrs, strict=True):
            loss = self._loss(x_of_step, y_of_step)
            gradients = torch.autograd.grad(loss, parameters)
            if self.rule.is_gradient_descent:
                with torch.no_grad():
                    # gives the same bits as optimizer.step and takes 0.1 ms less
                    torch_internals.foreach_add_(parameters, gradients, alpha=-lr)
            else:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                if self.rule.clip_value is not None:
                    CLIPPING[self.rule.clip_algorithm].in_place(parameters, self.rule.clip_value)
                self.optimizer.param_groups[0]["lr"] = lr
                self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.autocast is None:
            return cross_entropy(self.model(x), y)
        with torch.autocast(x.device.type, self.autocast, cache_enabled=False):
            return cross_entropy(self.model(x), y)

    @torch.no_grad()
    def _compiled(self, x: Tensor, y: Tensor, lrs: list[float]) -> Tensor:
        parameters = {name: parameter.detach() for name, parameter in self.parameters.items()}
        state, taken = self._state()
        beta1, beta2 = self.rule.betas
        table = [(lr, 1 - beta1**t, math.sqrt(1 - beta2**t)) for t, lr in enumerate(lrs, start=taken + 1)]
        dtype = next(iter(parameters.values())).dtype
        rates = torch.tensor(table, dtype=torch.promote_types(dtype, torch.float32))  # float64 where the network is
        # in the trial of a new package only the first step moves the parameters, so that rounding errors can't grow
        trial_rates = rates.clone()
        trial_rates[1:, 0] = 0
        minibatches, masks = (x, y), self._draw_masks(x)
        carry, xs = (parameters, self.buffers, state), (*minibatches, send(rates, x.device), masks)
        step = functional_step(self.model, self.rule, self.autocast)
        # all runs with networks of this shape use one package, because everything else that differs is an argument
        name = f"{self.name} {dtype} {x.shape} {x.device}"
        trial_xs = (*minibatches, send(trial_rates, x.device), masks)
        new, losses = self.engine.one_call(Scan(name, step, carry, xs, trial_xs))(carry, xs)
        torch_internals.foreach_copy_(torch_internals.leaves(carry), new)
        if self.rule.method.counts_steps:
            for kept in self.optimizer.state.values():
                kept["step"] += len(lrs)
        return losses

    def _draw_masks(self, x: Tensor) -> Tensors:
        """Name of each dropout's buffer -> masks (k, ...), drawn in the same order as in the simple loop."""
        if not self.dropouts:
            return {}
        if x.shape not in self.dropout_shapes:
            self.dropout_shapes[x.shape] = self._shapes_of_dropouts(x[0])
        shapes = self.dropout_shapes[x.shape].items()
        drawn = [{name: self.dropouts[name].draw(shape, x.device) for name, shape in shapes} for _ in range(len(x))]
        return {f"{name}.mask": torch.stack([masks[name] for masks in drawn]) for name, _ in shapes}

    def _shapes_of_dropouts(self, x: Tensor) -> dict[str, torch.Size]:
        shapes: dict[str, torch.Size] = {}

        def record(name: str, output: Tensor) -> None:
            shapes[name] = output.shape

        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: record(name, output))
            for name, module in self.dropouts.items()
        ]
        self.model.eval()(x)
        self.model.train()
        for handle in handles:
            handle.remove()
        return shapes

    def _state(self) -> tuple[State, int]:
        """The optimizer's own state tensors, which are made if they do not exist yet, and its number of steps."""
        taken = 0
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            if self.rule.method.counts_steps:
                taken = int(state.setdefault("step", torch.tensor(0.0)).item())
            for slot in self.rule.slots:
                if state.get(slot) is None:
                    state[slot] = torch.zeros_like(parameter)
        named = self.parameters.items()
        return {slot: {name: self.optimizer.state[p][slot] for name, p in named} for slot in self.rule.slots}, taken
