"""What numbers a setting may have, and the sentence for one that it may not."""

from dataclasses import fields
from typing import Any

FLOAT32 = (2.0**-149, (2 - 2.0**-23) * 2.0**127)
"""The smallest and the largest number above 0 that float32 holds."""
MOST = {"block_size": 10**6, "batch_size": 10**9, "n_embd": 10**6, "n_hidden": 10**6, "n_layers": 1_000}
MOST |= {"devices": 1_024, "threads": 1_024}
"""What a count may be at most, whatever the machine has; those that are not named, of steps, MOST_STEPS."""
MOST_STEPS = 10**12


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raises ValueError where the condition does not hold."""
    if not condition:
        raise ValueError(f"{key} must be {rule}, got {value!r}.")


def require_numbers(group: str, node: Any) -> None:
    """Refuse what no run can hold: floats that are 0 or infinite in float32, counts below 0 or without bound."""
    for each in fields(node):
        key, value = f"{group}.{each.name}", getattr(node, each.name)
        if isinstance(value, float) and value != 0:
            rule = "a number that float32 holds, of size 1.4e-45 to 3.4e+38"
            require(FLOAT32[0] <= abs(value) <= FLOAT32[1], key, rule, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            least, most = int(each.name != "warmup_steps"), MOST.get(each.name, MOST_STEPS)
            require(value >= least, key, f"at least {least}", value)
            require(value <= most, key, f"at most {most:,}", value)
