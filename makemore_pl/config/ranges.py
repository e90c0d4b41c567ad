"""The numbers that a setting can have, and the error for other numbers."""

from dataclasses import fields
from typing import Any

FLOAT32 = (2.0**-149, (2 - 2.0**-23) * 2.0**127)
"""The smallest and the largest positive number of float32."""
LARGEST_COUNT = {"block_size": 10**6, "batch_size": 10**9, "n_embd": 10**6, "n_hidden": 10**6, "n_layers": 1_000}
LARGEST_COUNT |= {"devices": 1_024, "threads": 1_024}
"""The largest value of each count, on any machine."""
LARGEST_STEP_COUNT = 10**12
"""The largest value of the other counts, which are numbers of steps."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raises ValueError if the condition is false."""
    if not condition:
        raise ValueError(f"{key} must be {rule}, got {value!r}.")


def require_numbers(group: str, node: Any) -> None:
    """Raises ValueError for a float that float32 would round to 0 or infinity, and for a count that is out of range."""
    for setting in fields(node):
        key, value = f"{group}.{setting.name}", getattr(node, setting.name)
        if isinstance(value, float) and value != 0:
            rule = "a number that float32 holds, of size 1.4e-45 to 3.4e+38"
            require(FLOAT32[0] <= abs(value) <= FLOAT32[1], key, rule, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            least, most = int(setting.name != "warmup_steps"), LARGEST_COUNT.get(setting.name, LARGEST_STEP_COUNT)
            require(value >= least, key, f"at least {least}", value)
            require(value <= most, key, f"at most {most:,}", value)
