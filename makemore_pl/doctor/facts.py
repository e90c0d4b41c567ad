"""What is known of a module, its loss, its data and its optimizers, apart from what changes from step to step."""

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
    """Size of the numbers that a network gets or has to give."""

    mean: float
    std: float
    largest: float
    """Largest absolute value."""
    smallest: float = 0.0
    """Smallest value, with its sign."""
    feature_spread: float = 1.0
    """Largest over median standard deviation of the features."""
    varies: bool = True
    """Whether examples differ."""

    @property
    def rms(self) -> float:
        return float((self.mean**2 + self.std**2) ** 0.5)


@dataclass(slots=True)
class Facts:
    """Everything is None, empty or False where it is not known; then rules abstain or stay silent."""

    layers: tuple[str, ...] = ()
    """Activation layers in the order of the forward pass, by the name that tags give them."""
    matrices: tuple[str, ...] = ()
    """Trainable matrices by tag name."""
    vocabulary: tuple[str, ...] = ()
    """Those of them that are embeddings, of which a step touches a few rows only."""
    output: str | None = None
    """The last of these matrices, whose product is the output."""
    normalised: tuple[str, ...] = ()
    """Matrices straight before a normalisation, whose scale does not matter."""
    bounded: tuple[str, ...] = ()
    """Layers whose activation saturates: tanh."""
    rectified: tuple[str, ...] = ()
    """Layers whose activation is zero for half of its inputs: ReLU."""
    before_normalised: bool = False
    """Whether every activation follows a normalisation."""

    loss: str | None = None
    """cross_entropy, nll, bce, mse or l1."""
    classes: int | None = None
    """Of a cross-entropy."""
    examples_in_loss: int | None = None
    """Rows that the loss adds up or averages over."""
    loss_is_bare: bool = True
    """Whether the number that is minimized is this loss, without factors and other terms."""
    loss_is_sum: bool = False
    """Whether it adds them up."""
    activation_before_loss: str | None = None
    """Function between the last layer and the loss: softmax, sigmoid, tanh or relu."""
    outside: float = 0.0
    """Share of targets that this function can't reach."""
    losses: int = 1
    """Backward passes a batch, each with a loss of its own."""
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
    """Of a regression."""

    validated_within: int = 0
    """Passes over the training data before the first validation, whole ones."""
    batch_size: int | None = None
    steps: int | None = None
    """Planned."""
    optimizers: tuple[OptimizerFacts, ...] = ()
    clip_value: float | None = None

    linear_pairs: tuple[tuple[str, str], ...] = ()
    """Layers that follow each other with nothing nonlinear between."""
    copies: dict[str, float] = field(default_factory=dict)
    """Matrix -> share of its units that are copies of another one after some steps."""
    bias_before_batchnorm: tuple[str, ...] = ()
    not_optimized: tuple[str, ...] = ()
    """Parameters that require and get a gradient, in no optimizer."""
    frozen: tuple[str, ...] = ()
    """Parameters with requires_grad=False."""
    unreached: tuple[str, ...] = ()
    """Parameters of an optimizer whose layer runs, that never got a gradient."""
    unused: tuple[str, ...] = ()
    """Parameters of an optimizer whose layer never runs."""
    accumulates: bool = False
    """Whether gradients of earlier steps are still there in backward."""
    examples_mixed: str | None = None
    """Where one example's output depends on another example."""
    asleep: tuple[str, ...] = ()
    """BatchNorms in eval mode while training, which hold no statistics worth keeping."""
    asleep_on_purpose: tuple[str, ...] = ()
    """BatchNorms in eval mode with statistics from before this run, or frozen parameters."""
    dropouts_asleep: tuple[str, ...] = ()
    values_per_channel: dict[str, int] = field(default_factory=dict)
    """BatchNorm -> numbers that its batch statistics are made of."""
    batchnorm_momentum: float | None = None
    dropout: float = 0.0
    unknown: dict[str, str] = field(default_factory=dict)
    """Rule id -> why a fact that it needs could not be found out."""
