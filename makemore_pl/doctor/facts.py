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

    @property
    def couples_decay(self) -> bool:
        """Whether it adds weight decay to the gradient; AdamW and others subtract it from the weights."""
        return self.name in ("SGD", "Adam", "RMSprop", "Adagrad")


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
    """What is None is not known, and rules that need it abstain; what is empty or False is known not to be there."""

    unseen: int = 0
    """Steps before the first one that was seen, of a resumed run."""

    layers: tuple[str, ...] | None = None
    """Activation layers in the order of the forward pass, by the name that tags give them. An activation function that
    is no module has the name of the layer before it.
    """
    matrices: tuple[str, ...] = ()
    """Trainable matrices by tag name."""
    vocabulary: tuple[str, ...] = ()
    """Those of them that are embeddings, of which a step touches a few rows only."""
    output: tuple[str, ...] = ()
    """Those of the last layer, which often starts small and then takes large steps for its size."""
    bounded: tuple[str, ...] | None = None
    """Layers whose activation saturates: tanh."""
    rectified: tuple[str, ...] | None = None
    """Layers whose activation is zero for half of its inputs: ReLU."""
    final: tuple[str, ...] = ()
    """Layers after which no layer with parameters comes: an activation at the output."""
    signals: dict[str, float] = field(default_factory=dict)
    """Layer -> spread of what goes into it from example to example at the start, the mean over its numbers; without
    those whose activation is a sigmoid, which shrinks it by its nature."""
    way_around: bool = False
    """Whether ways through different numbers of layers join in front of a layer, as behind a skip connection."""
    positions: dict[str, int] = field(default_factory=dict)
    """Layer -> numbers that its activations hold for each example and unit: pixels, or steps of a sequence."""
    before_normalised: bool | None = None
    """Whether every activation follows a normalisation."""

    loss: str | None = None
    """cross_entropy, nll, bce, mse or l1."""
    classes: int | None = None
    """Of a cross-entropy."""
    loss_scale: float | None = None
    """The number that is minimized over the mean of this loss's terms; None also where other terms are in it."""
    activation_before_loss: str | None = None
    """Function between the last layer and the loss: softmax, sigmoid, tanh or relu."""
    outside: float = 0.0
    """Share of targets that this function can't reach."""
    losses: int = 1
    """Number of backward passes in a batch, each of a different loss."""
    pretrained: bool = False
    """Whether the first loss is half of a constant guess's or less."""
    constant_guess: float | None = None
    """Mean loss of the best guess that does not look at the input."""
    targets_vary: bool | None = None

    inputs: Scale | None = None
    inputs_validated: Scale | None = None
    """What the same layer gets in the first validation."""
    tokens: bool = False
    """Whether the network begins with an embedding, so that its input has no scale."""
    inputs_vary: bool | None = None
    """Whether examples differ."""
    inputs_normalised: bool = False
    """Whether the network begins with a normalisation."""
    normalises: bool | None = None
    """Whether it has a normalisation anywhere."""
    targets: Scale | None = None
    """Of a regression or a binary cross-entropy."""

    validated_within: int = 0
    """Number of complete passes over the training data before the first validation."""
    batch_size: int | None = None
    examples: int | None = None
    """Of the training data."""
    optimizers: tuple[OptimizerFacts, ...] | None = None
    clip_value: float | None = None
    """Of gradient clipping, 0 without."""

    linear_pairs: tuple[tuple[str, str], ...] | None = None
    """Layers that follow each other with nothing nonlinear between."""
    copies: dict[str, float] | None = None
    """Matrix -> share of its units that are copies of another one after some steps."""
    bias_before_batchnorm: tuple[str, ...] | None = None
    not_optimized: tuple[str, ...] | None = None
    """Parameters that require and get a gradient, in no optimizer."""
    frozen: tuple[str, ...] = ()
    """Parameters with requires_grad=False."""
    unreached: tuple[str, ...] | None = None
    """Parameters of an optimizer whose layer runs, that never got a gradient."""
    unused: tuple[str, ...] = ()
    """Parameters of an optimizer whose layer never runs."""
    accumulates: bool | None = None
    """Whether gradients of earlier steps are still there in backward."""
    examples_mixed: str | None = None
    """Where one example's output depends on another example; empty where nowhere."""
    asleep: tuple[str, ...] | None = None
    """BatchNorms in eval mode while training, which hold no statistics worth keeping."""
    asleep_on_purpose: tuple[str, ...] = ()
    """BatchNorms in eval mode during training that have statistics of an earlier run, or frozen parameters."""
    dropouts_asleep: tuple[str, ...] = ()
    values_per_channel: dict[str, int] | None = None
    """BatchNorm -> numbers that its batch statistics are made of; empty without BatchNorm."""
    batchnorm_momentum: dict[str, float] = field(default_factory=dict)
    """BatchNorm -> weight of a new batch in its running statistics."""
    dropout: float | None = None
    """The largest share that is dropped."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Name of a fact that could not be found out -> why."""
