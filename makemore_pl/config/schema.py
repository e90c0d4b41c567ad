"""The typed schema of conf/, and resolve(): composed config -> typed, checked Config.

Imports neither torch nor lightning, so that --help, --cfg and tab completion answer at once.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from makemore_pl.config.choices import (
    ACTIVATION_NAMES,
    BATCHNORM_PLACEMENTS,
    INIT_NAMES,
    OPTIMIZER_SETTINGS,
    SCHEDULE_NAMES,
    SOURCE_NAMES,
    did_you_mean,
    one_of,
)
from makemore_pl.config.ranges import require, require_numbers


@dataclass(slots=True)
class DataConfig:
    """Words, context windows and minibatches."""

    source: str = "names"
    """The word list, unless data.path names a file."""
    path: str | None = None
    """A UTF-8 text file with one word a line. With data.source=lecture it must be a copy of the lecture's list."""
    block_size: int = 3
    """Characters of context."""
    batch_size: int = 32
    """Examples in one minibatch."""

    def __post_init__(self) -> None:
        one_of("data.source", self.source, SOURCE_NAMES)
        require_numbers("data", self)


@dataclass(slots=True)
class ModelConfig:
    """The MLP and its initialization."""

    n_embd: int = 10
    """Numbers in one character's embedding."""
    n_hidden: int = 200
    """Neurons in one hidden layer."""
    n_layers: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """The activation function of the hidden layers; leaky_relu has slope 0.01 below 0."""
    init: str = "kaiming"
    """Standard deviation of the hidden weights: kaiming gain/sqrt(fan_in), xavier gain*sqrt(2/(fan_in+fan_out)),
    small 0.01*gain, normal gain."""
    gain: float | None = None
    """Factor on the hidden weights; null: the gain of the activation with kaiming and xavier (tanh 5/3), else 1."""
    hidden_bias: float = 0.0
    """Standard deviation of the hidden biases."""
    output_scale: float = 0.01
    """Standard deviation of the output weights; with BatchNorm on the logits, the weight of that BatchNorm."""
    output_bias: float = 0.0
    """Standard deviation of the output bias."""
    batchnorm: str = "none"
    """none; pre: before each activation; post: after it; output: on the logits; pre_output: pre and output."""
    bn_momentum: float = 0.1
    """Weight of the new batch in BatchNorm's running statistics."""
    bn_eps: float = 1e-5
    """Added to BatchNorm's variance."""
    dropout: float = 0.0
    """Share of each hidden layer's activations set to zero in training."""

    def __post_init__(self) -> None:
        one_of("model.activation", self.activation, ACTIVATION_NAMES)
        one_of("model.init", self.init, INIT_NAMES)
        one_of("model.batchnorm", self.batchnorm, BATCHNORM_PLACEMENTS)
        require(self.gain is None or self.gain > 0, "model.gain", "greater than 0", self.gain)
        for name in ("hidden_bias", "output_scale", "output_bias"):
            require(getattr(self, name) >= 0, f"model.{name}", "0 or greater", getattr(self, name))
        require(0 < self.bn_momentum <= 1, "model.bn_momentum", "in (0, 1]", self.bn_momentum)
        require(self.bn_eps > 0, "model.bn_eps", "greater than 0", self.bn_eps)
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        require_numbers("model", self)

    def batchnorm_at(self, place: str) -> bool:
        """Whether there is a BatchNorm at a place: pre, post or output."""
        return place in BATCHNORM_PLACEMENTS[self.batchnorm]


@dataclass(slots=True)
class OptimConfig:
    """The optimizer and the learning rate as a function of the step."""

    name: str = "sgd"
    """The optimizer."""
    lr: float = 0.1
    """Learning rate after the warm-up and before any decay: the highest one."""
    momentum: float = 0.0
    """Momentum of sgd and rmsprop."""
    nesterov: bool = False
    """SGD with Nesterov momentum."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment, by adam, adamw and rmsprop."""
    alpha: float = 0.99
    """RMSprop's decay of the second moment."""
    weight_decay: float = 0.0
    """L2 penalty for sgd, adam and rmsprop, decoupled decay for adamw."""
    schedule: str = "step_decay"
    """constant: lr; step_decay: lr * decay_factor from decay_at on; cosine: falls to lr * decay_factor at the end."""
    decay_at: float = 0.5
    """Where step_decay happens, as a fraction of trainer.max_steps."""
    decay_factor: float = 0.1
    """step_decay multiplies lr by it; cosine ends at lr times it."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly to its schedule."""

    def __post_init__(self) -> None:
        one_of("optim.name", self.name, OPTIMIZER_SETTINGS)
        one_of("optim.schedule", self.schedule, SCHEDULE_NAMES)
        require(self.lr > 0, "optim.lr", "greater than 0", self.lr)
        for name in ("momentum", "beta1", "beta2", "alpha"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", "in [0, 1)", getattr(self, name))
        require(self.eps > 0, "optim.eps", "greater than 0", self.eps)
        require(self.weight_decay >= 0, "optim.weight_decay", "0 or greater", self.weight_decay)
        require(0 <= self.decay_at <= 1, "optim.decay_at", "a fraction of the run, 0 to 1", self.decay_at)
        require(0 <= self.decay_factor <= 1, "optim.decay_factor", "in [0, 1]", self.decay_factor)
        require_numbers("optim", self)
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum greater than 0.")
        for setting in ("momentum", "nesterov"):
            if getattr(self, setting) and setting not in OPTIMIZER_SETTINGS[self.name]:
                owners = " and ".join(name for name, settings in OPTIMIZER_SETTINGS.items() if setting in settings)
                instead = ": use optim.beta1" if "beta1" in OPTIMIZER_SETTINGS[self.name] else ""
                raise ValueError(f"optim.{setting} belongs to {owners}, not to {self.name}{instead}.")


@dataclass(slots=True)
class TrainerConfig:
    """Where and how long to train. Settings that Lightning has too have its names. All counts are optimizer steps."""

    accelerator: str = "auto"
    """cpu; gpu; auto: a GPU if there is one and the network is large enough to be faster on it, else the CPU."""
    devices: int = 1
    """Processes that share each minibatch (DistributedDataParallel when more than 1)."""
    precision: str = "32-true"
    """32-true, bf16-mixed or 16-mixed."""
    max_steps: int = 200_000
    """Optimizer steps in all."""
    val_check_interval: int = 10_000
    """Steps between validations, each with a checkpoint; the last step is always validated."""
    watch_every: int = 2_000
    """Steps between two watched steps. Hooks and callbacks see watched steps only; with 1 they see all of them."""
    engine: str = "auto"
    """How unwatched steps run. compile: about a hundred in one compiled call; eager: a bare loop;
    record: the same as one CUDA graph, which needs a GPU and no compiler;
    auto: on a GPU eager; else compile if there is a C++ compiler and the run is so long that compiling saves more time
    than it takes."""
    matmul_precision: str = "highest"
    """Precision of float32 matrix products on a GPU: highest; high or medium are faster (TensorFloat32, bfloat16)."""
    gradient_clip_val: float | None = None
    """Largest norm, or largest value, that the gradient keeps; null: no clipping."""
    gradient_clip_algorithm: str = "norm"
    """What gradient_clip_val bounds: norm or value."""
    deterministic: bool = False
    """Use only deterministic algorithms on a GPU; the CPU is always deterministic."""
    threads: int = 1
    """Threads of torch; more than 1 makes networks of the lecture's size slower."""
    enable_progress_bar: bool = True
    """Show loss and steps per second while training."""

    def __post_init__(self) -> None:
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        one_of("trainer.precision", self.precision, ("32-true", "bf16-mixed", "16-mixed"))
        one_of("trainer.engine", self.engine, ("auto", "compile", "eager", "record"))
        one_of("trainer.matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        one_of("trainer.gradient_clip_algorithm", self.gradient_clip_algorithm, ("norm", "value"))
        clip = self.gradient_clip_val
        require(clip is None or clip > 0, "trainer.gradient_clip_val", "greater than 0, or null", clip)
        require_numbers("trainer", self)


@dataclass(slots=True)
class DoctorConfig:
    """What scripts/doctor.py does, and what a sweep does with a finding."""

    verify: bool = False
    """Run baseline and prescriptions again, from several seeds."""
    seeds: int = 3
    """How many seeds doctor.verify runs."""
    fail_on: str = "never"
    """Exit with code 2 if there is a finding of this severity or worse: warning, critical or never."""
    stop_on_critical: bool = False
    """In a sweep: end a job with a critical finding early, unless its training loss is in the best quarter."""

    def __post_init__(self) -> None:
        one_of("doctor.fail_on", self.fail_on, ("warning", "critical", "never"))
        require(self.seeds >= 3, "doctor.seeds", "at least 3, for a paired test", self.seeds)


@dataclass(slots=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Callbacks by name, each with a `_target_`; any Lightning callback can be added."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Loggers by name, each with a `_target_`; any Lightning logger can be added."""
    experiment: str = "default"
    """Name of the overlay; also the folder under outputs/."""
    seed: int = 2147483647
    """Seed of the generator that draws parameters and minibatches, and of dropout. The default is the lecture's."""
    report: bool = True
    """Whether a run writes its page, report.html, at the end. The jobs of a sweep write none."""
    ckpt_path: str | None = None
    """Checkpoint to resume from."""
    run_dir: str = MISSING
    """The directory that the run writes into: Hydra's output directory."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)
        if self.model.batchnorm != "none" and self.data.batch_size == 1:
            raise ValueError(
                "data.batch_size=1 with model.batchnorm has no batch variance to divide by: "
                "use data.batch_size of at least 2, or model.batchnorm=none."
            )
        if self.data.batch_size % self.trainer.devices:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} can't be shared by trainer.devices={self.trainer.devices}: "
                "make it a multiple."
            )
        if self.model.batchnorm != "none" and self.data.batch_size < 2 * self.trainer.devices:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} on trainer.devices={self.trainer.devices} leaves BatchNorm "
                f"one example on each: use data.batch_size of at least {2 * self.trainer.devices}."
            )
        if self.optim.warmup_steps >= self.trainer.max_steps:
            raise ValueError(
                f"optim.warmup_steps={self.optim.warmup_steps} must be less than "
                f"trainer.max_steps={self.trainer.max_steps}."
            )
        for group in ("callbacks", "logger"):
            for name, node in getattr(self, group).items():
                if not isinstance(node, dict) or "_target_" not in node:
                    raise ValueError(f"{group}.{name} has no _target_, so there is nothing to build.")


def _keys(schema: Any, prefix: str = "") -> list[str]:
    keys = []
    for setting in fields(schema):
        keys.append(prefix + setting.name)
        if is_dataclass(setting.type):
            keys += _keys(setting.type, f"{prefix}{setting.name}.")
    return keys


def key_of(name: str) -> str | None:
    """The dotted key of a setting by its last part, or by all of it; None if there is none."""
    return next((key for key in _keys(Config) if name in (key, key.rpartition(".")[2])), None)


def unknown_key(key: str) -> str:
    """The sentence for a dotted key that the schema does not have."""
    if re.match(r"(callbacks|logger)\.\w+\.", key):
        return f"{key} is not among the defaults: add it, +{key}=VALUE."
    meant = key_of(key)
    return f"Unknown config key {key!r}.{f' Did you mean {meant!r}?' if meant else did_you_mean(key, _keys(Config))}"


def _refuse_unknown(node: DictConfig, schema: Any, prefix: str = "") -> None:
    # Hydra inserts `+model.n_hiden=300` although the schema has no such key
    for key in node:
        known = {setting.name: setting.type for setting in fields(schema)}
        if key not in known:
            raise ValueError(unknown_key(f"{prefix}{key!s}"))
        if is_dataclass(known[str(key)]):
            if not isinstance(node[key], DictConfig):
                raise ValueError(f"{prefix}{key!s} must be a group of settings, got {node[key]!r}.")
            _refuse_unknown(node[key], known[str(key)], f"{prefix}{key!s}.")


def resolve(raw: DictConfig) -> Config:
    """Composed config -> typed Config.

    Raises:
        ValueError: a key is unknown, or its value is missing or out of range; the message names the key.
    """
    _refuse_unknown(raw, Config)
    config = OmegaConf.to_object(raw)
    assert isinstance(config, Config)
    return config


ConfigStore.instance().store(name="schema", node=Config)
