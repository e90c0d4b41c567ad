"""The networks that are timed, and those of the scaling table. Without torch, to keep the parent process small."""

from dataclasses import dataclass, replace

BLOCK_SIZE = 3
N_EMBD = 10
VOCAB_SIZE = 27


@dataclass(frozen=True, slots=True)
class Network:
    """The settings of an experiment in conf/experiment/ that the other contenders' loops need."""

    experiment: str
    n_layers: int = 1
    n_hidden: int = 200
    batchnorm: str = "none"
    batch_size: int = 32

    @property
    def overrides(self) -> list[str]:
        """The same network on the command line of scripts/train.py."""
        base = NETWORKS[self.experiment]
        keys = {"n_layers": "model.n_layers", "n_hidden": "model.n_hidden", "batch_size": "data.batch_size"}
        differing = [f"{key}={getattr(self, n)}" for n, key in keys.items() if getattr(self, n) != getattr(base, n)]
        return [f"+experiment={self.experiment}", *differing]


NETWORKS = {
    "batchnorm": Network("batchnorm", batchnorm="pre"),
    "kaiming": Network("kaiming"),
    "deep_batchnorm": Network("deep_batchnorm", n_layers=5, n_hidden=100, batchnorm="pre_output"),
}

AXES = {"batch_size": (8, 32, 128, 512), "n_hidden": (50, 200, 800), "n_layers": (1, 3, 5, 8)}


def scaled(axis: str, value: int) -> tuple[str, Network]:
    """The batchnorm network with one size changed, and its name."""
    network = replace(NETWORKS["batchnorm"], **{axis: value})  # type: ignore[arg-type]
    return "batchnorm" if network == NETWORKS["batchnorm"] else f"{axis}={value}", network
