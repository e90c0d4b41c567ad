"""Rules for the forward pass: activations that saturate, die, vanish or explode; layers with nothing between them."""

from collections.abc import Iterator, Mapping

import numpy as np

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable, Series, median
from makemore_pl.doctor.finding import Finding, listed
from makemore_pl.doctor.rule import rule

FIRST, LATER, MOST = 0.36, 0.27, 0.50
"""Bounds of saturation in the first tanh layer and of the median of the later layers, and where it is critical.
Measured in the first layer and in later ones: gain 5/3 gives 0.20 (0.30 with some embeddings) and 0.07, gain 2 gives
0.28 and 0.16, gain 3 gives 0.46 and 0.40. After a normalisation gain 5/3 gives 0.20 in every layer."""
DEAD_TANH, DEAD_RELU = 0.2, 0.6
FADED_TANH, FADED = 0.1, 0.01
EXPLODED = 12.0
GONE = 0.002
"""Spread from example to example. PyTorch's own initialization leaves 0.41 of it a ReLU layer, 0.003 after seven."""


@rule(
    "linear_network",
    "forward",
    "Layers with nothing nonlinear between",
    needs=("which layer follows which",),
    bound="a Linear whose output goes straight into another one that is no narrower, or into it through sums and "
    "products with constants; of convolutions the same, also with a depthwise one between",
    source="a product of matrices is a matrix; narrower ones in between are a factorization and may be meant",
    explains=("no_learning", "exploding_activations", "vanishing_activations"),
    remedy="Put an activation between: nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c)).",
    picture="histograms of activations",
)
def linear_network(evidence: Evidence) -> Iterator[Finding]:
    otherwise = "it was not seen which layer follows which"
    if pairs := evidence.known(evidence.facts.linear_pairs, "linear_pairs", otherwise):
        names = [f"{first} -> {second}" for first, second in pairs]
        yield Finding(
            "linear_network", "warning", ", ".join(names), 0, float(len(pairs)), 0.0, "",
            f"Nothing nonlinear is between {listed(names)}: together these layers can do no more than one.",
        )  # fmt: skip


@rule(
    "softmax_before_cross_entropy",
    "forward",
    "Softmax before a cross-entropy",
    needs=("the graph of the loss",),
    bound="softmax is the last function before a loss that applies log-softmax itself",
    source="torch.nn.CrossEntropyLoss wants logits; Karpathy's list of slips",
    explains=("no_learning", "vanishing_gradients", "exploding_gradients", "update_too_small"),
    remedy="Give the loss the logits: F.cross_entropy(logits, y). Softmax is for predictions.",
    picture="train/loss, which can't fall below ln(1 + (V - 1) / e)",
)
def softmax_before_cross_entropy(evidence: Evidence) -> Iterator[Finding]:
    if _loss(evidence) != "cross_entropy":
        raise NotApplicable("the loss is no cross-entropy of classes")
    if evidence.facts.activation_before_loss == "softmax":
        yield Finding(
            "softmax_before_cross_entropy", "critical", "output", 0, None, None, "",
            "The loss gets probabilities instead of logits, and it applies softmax itself: two in a row flatten "
            "the gradient, and the loss can't come near 0.",
        )  # fmt: skip


@rule(
    "activation_before_loss",
    "forward",
    "The output's activation does not fit the loss",
    needs=("the graph of the loss",),
    bound="a cross-entropy on anything but logits, log-likelihoods without log, or 2 % of the targets of a regression "
    "outside of what the output's activation can give",
    source="the loss functions' own documentation; a wrong activation at the output is the most frequent cause in real "
    "fault sets (PMC12152046)",
    explains=(
        "no_learning",
        "no_gradient",
        "vanishing_gradients",
        "exploding_gradients",
        "dead_units",
        "update_too_small",
        "update_too_large",
        "confident_start",
        "diverged",
        "not_finite",
    ),
    remedy="Leave the activation at the output away, or take the one whose range is that of the targets.",
    picture="train/loss",
)
def activation_before_loss(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    loss, before = _loss(evidence), facts.activation_before_loss
    if loss in ("mse", "l1"):
        if before and facts.outside > 0.02:
            yield Finding(
                "activation_before_loss", "warning", "output", 0, facts.outside, 0.02, "",
                f"{facts.outside:.0%} of the targets lie outside of the range of {before}, the output's activation.",
            )  # fmt: skip
    elif loss == "nll":
        yield Finding(
            "activation_before_loss", "critical", "output", 0, None, None, "",
            f"The loss wants logarithms of probabilities and gets {before or 'the bare output'}.",
        )  # fmt: skip
    elif before and before != "softmax":
        yield Finding(
            "activation_before_loss", "critical", "output", 0, None, None, "",
            f"The loss wants logits and gets the output of {before}.",
        )  # fmt: skip
    elif before and loss == "bce":
        yield Finding(
            "activation_before_loss", "critical", "output", 0, None, None, "",
            "The loss applies sigmoid itself, so it wants logits, but it gets probabilities.",
        )  # fmt: skip


def _loss(evidence: Evidence) -> str:
    return evidence.known(evidence.facts.loss, "loss", "the loss is none whose graph could be read")


def _need(evidence: Evidence, quantity: str, of: tuple[str, ...] | None, kind: str) -> dict[str, Series]:
    """Of layers of a kind; abstains where there is none, or none was measured."""
    if of == () and evidence.facts.layers:
        raise NotApplicable(f"there is no {kind}")
    return evidence.need(quantity)


@rule(
    "saturation",
    "forward",
    "tanh units are saturated from the start",
    needs=("saturation/<layer>",),
    bound="share of |tanh| > 0.97 at the start above 0.36 in the first layer or 0.27 in the median later one; "
    "critical from 0.5",
    source="0.97: the lecture. The bounds lie between gain 2 (0.28 and 0.16, no harm measured) and gain 3 (0.46 and "
    "0.40)",
    explains=(
        "dead_units",
        "vanishing_gradients",
        "exploding_gradients",
        "update_too_small",
        "no_learning",
    ),
    remedy="Draw hidden weights with standard deviation 5/3 / sqrt(fan_in) and biases near 0: "
    "nn.init.kaiming_normal_(w, nonlinearity='tanh'); or put BatchNorm before each tanh.",
    picture="the raster of saturated units",
)
def saturation(evidence: Evidence) -> Iterator[Finding]:
    layers = _need(evidence, "saturation", evidence.facts.bounded, "tanh")
    first = evidence.facts.layers[0] if evidence.facts.layers else next(iter(layers))
    later = median(each.start for name, each in layers.items() if name != first)
    over: dict[str, tuple[float, float]] = {}
    for name, each in layers.items():
        bound, judged = (FIRST, each.start) if name == first else (LATER, later)
        if judged > bound and each.start > bound:
            over[name] = each.start, bound
    if over:
        worst = max(over, key=lambda name: over[name][0])
        value, bound = over[worst]
        yield Finding(
            "saturation", "critical" if value > MOST else "warning", ", ".join(over), 0, value, bound, "",
            f"{value:.0%} of the tanh outputs of {worst} are beyond 0.97 from the start, where tanh passes on less "
            "than 6 % of its gradient: the weights before it are too large.",
        )  # fmt: skip


@rule(
    "exploding_activations",
    "forward",
    "Activations grow from layer to layer",
    needs=("activation_std/<layer>",),
    bound="at the start a standard deviation 12 times that of the first layer, or above 12 in a first layer",
    source="He et al. 2015: the right scale keeps it constant; a factor 12 is ours",
    explains=("exploding_gradients", "confident_start", "update_too_large", "update_too_small", "diverged",
              "not_finite", "dead_units",
              "loss_spike", "clipping", "no_learning"),
    remedy="Draw weights with standard deviation gain / sqrt(fan_in): nn.init.kaiming_normal_(w).",
    picture="activation_std over the layers",
)  # fmt: skip
def exploding_activations(evidence: Evidence) -> Iterator[Finding]:
    if evidence.facts.before_normalised:
        raise NotApplicable("a normalisation is before each activation")
    measured = evidence.need("activation_std")
    losses = evidence.get("train/loss")
    overflown = next((name for name, each in measured.items() if each.steps[0] == 0 and np.isnan(each.start)), None)
    layers = {name: each.start for name, each in measured.items() if each.start > 0}
    grown = max(layers.values(), default=0.0) > EXPLODED  # else something that is not finite came in
    if overflown and grown and losses is not None and losses.steps[0] == 0 and np.isnan(losses.start):
        yield Finding(
            "exploding_activations", "critical", overflown, 0, None, None, "",
            f"The activations of {overflown} start infinite, and others are finite: each layer multiplies.",
        )  # fmt: skip
        return
    if not layers:
        raise Abstain("no activation varies at the start")
    first = next(iter(layers.values()))
    worst = max(layers, key=lambda name: layers[name])
    bound = EXPLODED * min(first, 1.0) if len(layers) > 1 else EXPLODED
    if layers[worst] > max(bound, 2.0):
        if worst == next(iter(layers)):
            why = ", though it is the first layer: its weights or its inputs are too large"
        else:
            why = f", those of the first layer with {first:.3g}: each layer multiplies"
        yield Finding(
            "exploding_activations", "critical", worst, 0, layers[worst], bound, "",
            f"The activations of {worst} start with a standard deviation of {layers[worst]:.3g}{why}.",
        )  # fmt: skip


@rule(
    "vanishing_activations",
    "forward",
    "Activations fade from layer to layer",
    needs=("preactivation_std/<layer>",),
    bound="at the start, preactivations with a standard deviation below 0.1 (tanh) or 0.01 (others), or below 0.002 "
    "from example to example, sigmoid aside; where skip connections lead around layers, 0.01 also for tanh, "
    "and only if the last layer has faded",
    source="below 0.1 tanh is linear to 0.3 %. The lecture's gain 1 keeps 0.33 in the fifth layer, gain 0.5 0.02",
    explains=("vanishing_gradients", "update_too_small", "update_too_large", "no_learning", "dead_units"),
    remedy="Draw hidden weights with standard deviation gain / sqrt(fan_in), gain 5/3 for tanh and sqrt(2) for ReLU; "
    "or put a normalisation before each activation.",
    picture="activation_std over the layers",
)
def vanishing_activations(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    if facts.before_normalised:
        raise NotApplicable("a normalisation is before each activation")
    measured, bounded = evidence.need("preactivation_std"), facts.bounded or ()
    layers = {name: each.start for name, each in measured.items() if name not in facts.final}
    chain = not facts.way_around
    bounds = {name: FADED_TANH if name in bounded and chain else FADED for name in layers}
    faded = {name: std for name, std in layers.items() if 0 <= std < bounds[name]}
    gone = {name: std for name, std in facts.signals.items() if std < GONE and name not in facts.final}
    faded |= gone
    if not chain and next(reversed(layers), None) not in faded:  # the signal has come another way
        return
    stuck = {name: each.start for name, each in evidence.of("stuck_units").items()}
    silent = next((name for name, share in stuck.items() if share > 0.9 and name not in faded), None)
    if silent is not None:  # behind a layer that is dead nothing can arrive
        names = list(stuck)
        faded = {name: std for name, std in faded.items() if name in names[: names.index(silent)]}
    if faded:
        worst = min(faded, key=lambda name: faded[name])
        bound = GONE if worst in gone else bounds[worst]
        yield Finding(
            "vanishing_activations", "warning", ", ".join(faded), 0, faded[worst], bound, "",
            f"The input of the activation of {worst} starts with a standard deviation of {faded[worst]:.2g}: the "
            "signal hardly reaches it, because the weights before it are too small.",
        )  # fmt: skip


@rule(
    "dead_units",
    "forward",
    "Units are dead",
    needs=("dead_units/<layer> for tanh, stuck_units/<layer> for ReLU",),
    bound="late in the run, 20 % of the tanh units saturated on every example, or 60 % of the ReLU units at zero on "
    "every example, or in minibatches of fewer than 16 examples all of them; critical from 90 %, and below that only "
    "information where the loss is under 0.7 of a constant guess's or that is not known",
    source="tanh: the worst start of the lecture ends at 5 %; ReLU: half of the units, as SageMaker Debugger and "
    "TheDeepChecker have it, and a margin for units that are sparse",
    explains=("vanishing_gradients", "no_learning", "no_gradient", "update_too_small"),
    remedy="Lower the learning rate, start biases at 0, use LeakyReLU or a normalisation before the activation.",
    picture="the raster of saturated units",
)
def dead_units(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    few = (facts.batch_size or 32) < 16
    if facts.layers and not facts.bounded and not facts.rectified:
        raise NotApplicable("there is neither tanh nor ReLU")
    rectified = facts.rectified or ()
    tanh = evidence.of("dead_units")
    sizes = evidence.of("preactivation_std")  # where there is no signal, all units are near zero and none is dead
    silent = {name for name, each in sizes.items() if each.late < FADED}
    relu = {name: each for name, each in evidence.of("stuck_units").items() if name in rectified and name not in silent}
    if not tanh and not relu:
        raise Abstain("neither tanh nor ReLU was measured")
    dead = _above(tanh, DEAD_TANH) | _above(relu, DEAD_RELU)
    if few and not (dead := {name: share for name, share in dead.items() if share == 1}):
        raise Abstain("minibatches of fewer than 16 examples leave units silent by chance")
    if dead:
        worst = max(dead, key=lambda name: dead[name])
        bound = DEAD_RELU if worst in rectified else DEAD_TANH
        guess = evidence.guess()
        # the rest of the units may be enough: it is a fault where it is known that little has been learned
        learned = guess is None or ("train/loss" in evidence.series and evidence.losses().late < 0.7 * guess)
        severity = "critical" if dead[worst] > 0.9 else "info" if learned else "warning"
        yield Finding(
            "dead_units", severity, ", ".join(dead), evidence.last_step, dead[worst], bound, "",
            f"{dead[worst]:.0%} of the units of {worst} give the same on every example: no gradient reaches their "
            "weights any more.",
        )  # fmt: skip


def _above(layers: Mapping[str, Series], bound: float) -> dict[str, float]:
    return {name: each.late for name, each in layers.items() if each.late > bound}
