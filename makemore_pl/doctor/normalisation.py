"""Rules for BatchNorm: its statistics lag behind, are noisy, come from too few examples, or are not updated."""

from collections.abc import Iterator

from makemore_pl.doctor.evidence import Abstain, Evidence, NotApplicable, median
from makemore_pl.doctor.finding import Finding, listed
from makemore_pl.doctor.rule import rule

GAP = 0.05
"""Nats between running and batch statistics on the same examples."""
LAG, STRAYED = 1.9, 0.3
"""Noise alone gives a lag of 1, and 1.4 with momentum 1. Where no probe tells the cost, the running statistics have to
be so many of a channel's standard deviations off; 0.57 have cost 0.46 nats."""
ENOUGH = 100
"""Steps that running statistics have to settle, with momentum 0.1 and ten times the time."""
NOISE = 0.025
"""Variance of a running mean over that of what it averages."""
FEW, VERY_FEW = 12, 8
"""Batch statistics need at least this many numbers per channel; from the second on, a short memory does more harm."""
USUAL = 0.1
"""PyTorch's momentum, which remembers ten batches."""


@rule(
    "batchnorm_eval",
    "batchnorm",
    "BatchNorm is in eval mode while training",
    needs=("the mode of each BatchNorm in a training step",),
    bound="a BatchNorm in eval mode whose statistics are untouched, or that was in training mode earlier in the run",
    source="in eval mode it normalises by running statistics and no longer updates them",
    explains=("train_val_mismatch", "saturation", "vanishing_activations", "exploding_activations", "no_learning",
              "update_too_large", "batchnorm_lag"),
    remedy="Call self.train() after whatever calls self.eval(), as at the end of a validation of one's own.",
    picture="batchnorm_drift, which is 0",
)  # fmt: skip
def batchnorm_eval(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.facts
    asleep = evidence.known(facts.asleep, "asleep", "it was not seen in which mode layers run")
    if asleep:
        yield Finding(
            "batchnorm_eval", "critical", ", ".join(asleep), 0, float(len(asleep)), 0.0, "",
            f"{listed(asleep)} are in eval mode during training: they don't normalise by the minibatch, and "
            "their running statistics stand still.",
        )  # fmt: skip
    elif facts.asleep_on_purpose or facts.dropouts_asleep:
        names = (*facts.asleep_on_purpose, *facts.dropouts_asleep)
        yield Finding(
            "batchnorm_eval", "info", ", ".join(names), 0, float(len(names)), 0.0, "",
            f"{listed(names)} are in eval mode during training.",
        )  # fmt: skip
    else:
        _batchnorms(evidence)


@rule(
    "bias_before_batchnorm",
    "batchnorm",
    "A bias before BatchNorm",
    needs=("which layer follows which",),
    bound="a layer with a bias whose output goes straight into a BatchNorm",
    source="BatchNorm subtracts the mean and the bias with it; NeuraLint. It wastes parameters and does no harm: info",
    remedy="nn.Linear(a, b, bias=False), nn.Conv2d(..., bias=False).",
    picture="grad_std of the bias, which is 0 up to rounding",
)
def bias_before_batchnorm(evidence: Evidence) -> Iterator[Finding]:
    _batchnorms(evidence)
    otherwise = "it was not seen which layer follows which"
    if names := evidence.known(evidence.facts.bias_before_batchnorm, "bias_before_batchnorm", otherwise):
        yield Finding(
            "bias_before_batchnorm", "info", ", ".join(names), 0, float(len(names)), 0.0, "",
            f"The bias of {listed(names)} is subtracted again by the BatchNorm after it: leave it out.",
        )  # fmt: skip


@rule(
    "batchnorm_small_batch",
    "batchnorm",
    "BatchNorm on too few examples",
    needs=("the size of a minibatch",),
    bound="batch statistics made of fewer than 12 numbers a channel, or than 8 where batchnorm_noise is found too",
    source="our networks: 8 examples cost 0.05 nats before tanh, 16 nothing that shows; a short memory costs more",
    # two numbers are normalised to -1 and 1 whatever they were: no gradient passes, or, if they are close, a huge one
    explains=("batchnorm_noise", "batchnorm_lag", "train_val_mismatch", "no_learning", "overfitting",
              "vanishing_gradients", "exploding_gradients", "update_too_small", "update_too_large"),
    remedy="Larger minibatches, or GroupNorm or LayerNorm, which don't look at other examples.",
    picture="batchnorm_gap",
)  # fmt: skip
def batchnorm_small_batch(evidence: Evidence) -> Iterator[Finding]:
    numbers = _batchnorms(evidence)
    bound = VERY_FEW if any(each > NOISE for each in _noise(evidence, numbers).values()) else FEW
    few = {name: n for name, n in numbers.items() if n < bound}
    if few:
        worst = min(few, key=lambda name: few[name])
        yield Finding(
            "batchnorm_small_batch", "critical" if few[worst] < 4 else "warning", ", ".join(few), 0,
            float(few[worst]), float(bound), "",
            f"The batch statistics of {worst} are made of {few[worst]} numbers a channel: each example is normalised "
            "by a few others that happen to be there.",
        )  # fmt: skip


@rule(
    "batchnorm_lag",
    "batchnorm",
    "Running statistics trail behind",
    needs=("batchnorm_gap/loss, or batchnorm_mean_lag/<layer> and batchnorm_var_lag/<layer>",),
    bound="with a momentum below 0.1, late in the run, running statistics cost 0.05 nats more than batch statistics "
    "and lie further from them than the draw of a batch explains (lag above 1.9); without a probe, running statistics "
    "0.3 standard deviations off and no validation loss near that of training",
    source="a perfect running mean has lag 1, whatever the batch; 0.05 nats are ten times what momentum 0.1 costs",
    explains=("train_val_mismatch", "overfitting"),
    remedy="Raise BatchNorm's momentum (PyTorch's 0.1 remembers 10 batches), or recompute the statistics at the end.",
    picture="batchnorm_mean_lag, batchnorm_gap",
)
def batchnorm_lag(evidence: Evidence) -> Iterator[Finding]:
    numbers = _batchnorms(evidence)
    lag, worst = _lag(evidence)
    if evidence.facts.batchnorm_momentum.get(worst, 0.0) >= USUAL:
        return  # ten batches are no long memory: something else moves too fast
    gap = evidence.get("batchnorm_gap/loss")
    if gap is None:
        if evidence.last_step < ENOUGH:
            raise Abstain(f"fewer than {ENOUGH} steps were taken, and no probe tells what the lag costs")
        val, train = evidence.get("val/loss"), evidence.losses().late
        strayed = lag / (max(numbers.values()) ** 0.5)  # a standard error is that much less than a standard deviation
        if lag > LAG and strayed > STRAYED and (val is None or float(val.values[-1]) > 1.1 * train):
            yield Finding(
                "batchnorm_lag", "warning", worst, evidence.last_step, strayed, STRAYED, "",
                f"The running statistics of {worst} are {strayed:.2g} standard deviations off, {lag:.1f} times as far "
                "as the draw of a batch explains, and in eval mode the network works with these.",
            )  # fmt: skip
        return
    if lag > LAG and float(gap.values[-1]) > GAP:
        yield Finding(
            "batchnorm_lag", "warning", worst, evidence.last_step, float(gap.values[-1]), GAP, "",
            f"With running statistics the same examples cost {gap.values[-1]:.2f} nats more than with those of the "
            f"batch: the running statistics of {worst} are {lag:.1f} times as far off as the draw of a batch explains.",
        )  # fmt: skip


@rule(
    "batchnorm_noise",
    "batchnorm",
    "Running statistics are noisy",
    needs=("BatchNorm's momentum and the size of a minibatch", "batchnorm_gap/loss, where the module offers a probe"),
    bound="momentum / (2 - momentum) over the numbers a channel above 0.025; or, late in the run, running statistics "
    "that cost 0.05 nats more than batch statistics without trailing behind",
    source="the variance of an exponential average; momentum 0.1 in batches of 32 has 0.0016 and costs 0.003 nats",
    explains=("train_val_mismatch",),
    remedy="Lower BatchNorm's momentum, enlarge the minibatch, or recompute the statistics at the end.",
    picture="batchnorm_gap",
)
def batchnorm_noise(evidence: Evidence) -> Iterator[Finding]:
    momenta, noise = evidence.facts.batchnorm_momentum, _noise(evidence, _batchnorms(evidence))
    if noise and noise[worst := max(noise, key=lambda name: noise[name])] > NOISE:
        yield Finding(
            "batchnorm_noise", "warning", ", ".join(noise), 0, noise[worst], NOISE, "",
            f"With momentum {momenta[worst]:g} the running statistics of {worst} are those of few examples: their mean "
            f"strays by {noise[worst] ** 0.5:.0%} of a standard deviation.",
        )  # fmt: skip
        return
    gap = evidence.get("batchnorm_gap/loss")
    if gap is None or evidence.facts.dropout:  # which widens what goes into BatchNorm in training only
        return
    lag, worst = _lag(evidence)
    late = gap.late
    if lag <= LAG and late > GAP:
        yield Finding(
            "batchnorm_noise", "warning", worst, evidence.last_step, late, GAP, "",
            f"With running statistics the same examples cost {late:.2f} nats more than with those of the batch: the "
            "running statistics are those of too few examples.",
        )  # fmt: skip


def _batchnorms(evidence: Evidence) -> dict[str, int]:
    """BatchNorm -> numbers that its batch statistics are made of; abstains without one in training mode."""
    otherwise = "it was not seen whether there is a BatchNorm"
    if not (found := evidence.known(evidence.facts.values_per_channel, "values_per_channel", otherwise)):
        raise NotApplicable("no BatchNorm runs in training mode")
    return found


def _noise(evidence: Evidence, numbers: dict[str, int]) -> dict[str, float]:
    """BatchNorm -> variance of its running mean, in variances of a batch."""
    momenta = evidence.facts.batchnorm_momentum
    return {name: m / (2 - m) / numbers[name] for name, m in momenta.items() if name in numbers}


def _lag(evidence: Evidence) -> tuple[float, str]:
    lags: dict[str, list[float]] = {}
    for quantity in ("batchnorm_mean_lag", "batchnorm_var_lag"):
        for name, each in evidence.of(quantity).items():
            lags.setdefault(name, []).append(each.late)
    if not lags:
        raise Abstain("no BatchNorm with running statistics was measured")
    worst = max(lags, key=lambda name: max(lags[name]))
    return median([max(lags[worst])]), worst
