"""What is known about a module, its loss, its data and its optimizers and does not change from step to step."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """One optimizer."""

    name: str
    """Its class, such as SGD or AdamW."""
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def adaptive(self) -> bool:
        """Whether it divides by the gradient's size, so that a factor on the loss changes nothing."""
        return self.name.lower().startswith(("ada", "nadam", "radam", "rmsprop", "lion", "lamb", "rprop"))


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a network's inputs or targets."""

    mean: float
    std: float
    largest: float
    """Largest absolute value."""
    smallest: float = 0.0
    """Smallest value, with its sign."""
    feature_spread: float = 1.0
    """Largest over median standard deviation of the features."""
    varies: bool = True
    """Whether the examples differ from each other."""

    @property
    def rms(self) -> float:
        return float((self.mean**2 + self.std**2) ** 0.5)


@dataclass(slots=True)
class Facts:
    """A fact that is not known is None, empty or False; then rules abstain or find nothing."""

    layers: tuple[str, ...] = ()
    """Activation layers in the order of the forward pass, by the name that tags give them."""
    matrices: tuple[str, ...] = ()
    """Trainable matrices by tag name."""
    vocabulary: tuple[str, ...] = ()
    """The matrices that are embeddings: a step changes only a few of their rows."""
    output: str | None = None
    """The last matrix, which makes the output."""
    normalised: tuple[str, ...] = ()
    """Matrices directly before a normalisation: their scale does not matter."""
    bounded: tuple[str, ...] = ()
    """Layers with tanh, whose activation saturates."""
    rectified: tuple[str, ...] = ()
    """Layers with ReLU, whose activation is zero for half of its inputs."""
    before_normalised: bool = False
    """Whether every activation follows a normalisation."""

    loss: str | None = None
    """cross_entropy, nll, bce, mse or l1."""
    classes: int | None = None
    """Number of classes of a cross-entropy."""
    examples_in_loss: int | None = None
    """Number of rows that the loss sums or averages."""
    loss_is_bare: bool = True
    """Whether exactly this loss is minimized, without factors and other terms."""
    loss_is_sum: bool = False
    """Whether the loss sums its rows."""
    activation_before_loss: str | None = None
    """Function between the last layer and the loss: softmax, sigmoid, tanh or relu."""
    outside: float = 0.0
    """Share of targets that this function can't reach."""
    losses: int = 1
    """Number of backward passes in a batch, each of a different loss."""
    pretrained: bool = False
    """Whether the first loss is half of a constant guess's or less."""
    constant_guess: float | None = None
    """Loss of the best guess that does not look at the input."""
    targets_vary: bool = True

    inputs: Scale | None = None
    tokens: bool = False
    """Whether the network begins with an embedding, so that its input has no scale."""
    inputs_normalised: bool = False
    """Whether the network begins with a normalisation."""
    targets: Scale | None = None
    """The targets of a regression."""

    validated_within: int = 0
    """Number of complete passes over the training data before the first validation."""
    batch_size: int | None = None
    steps: int | None = None
    """The planned number of optimizer steps."""
    optimizers: tuple[OptimizerFacts, ...] = ()
    clip_value: float | None = None

    linear_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of layers with nothing nonlinear between them."""
    copies: dict[str, float] = field(default_factory=dict)
    """Matrix -> share of its units that are copies of another one after some steps."""
    bias_before_batchnorm: tuple[str, ...] = ()
    not_optimized: tuple[str, ...] = ()
    """Parameters that require and get a gradient and are in no optimizer."""
    frozen: tuple[str, ...] = ()
    """Parameters with requires_grad=False."""
    unreached: tuple[str, ...] = ()
    """Parameters of an optimizer that never got a gradient although their layer runs."""
    unused: tuple[str, ...] = ()
    """Parameters of an optimizer whose layer never runs."""
    accumulates: bool = False
    """Whether gradients of earlier steps are still there when the next backward pass begins."""
    examples_mixed: str | None = None
    """The name of a module in which one example's output depends on another example."""
    asleep: tuple[str, ...] = ()
    """BatchNorms in eval mode during training that have no statistics worth keeping."""
    asleep_on_purpose: tuple[str, ...] = ()
    """BatchNorms in eval mode during training that have statistics of an earlier run, or frozen parameters."""
    dropouts_asleep: tuple[str, ...] = ()
    values_per_channel: dict[str, int] = field(default_factory=dict)
    """BatchNorm -> how many numbers its batch statistics are computed from."""
    batchnorm_momentum: float | None = None
    dropout: float = 0.0
    unknown: dict[str, str] = field(default_factory=dict)
    """Rule id -> why a fact that the rule needs is not known."""
