"""Sending small tensors to the GPU without waiting for it."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device: from pinned memory, so that the copy to a GPU runs beside the host."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
