"""What GPUs can do at most: the one table behind the plan's times and the trainer's MFU.

Dense bfloat16 on tensor cores, from NVIDIA's data sheets. Where a sheet gives the figure "with sparsity" only, this is half of it:
training is dense.
"""

from __future__ import annotations

import re

PEAK_FLOPS: dict[str, float] = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H200 NVL": 835e12, "H200": 989e12, "GH200": 989e12, "H800": 989e12, "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12, "A800": 312e12, "A40": 149.7e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12,
}  # fmt: skip
"""FLOP/s by words of a device's name. The first entry whose words all are in the name counts: special ones stand before plain ones."""


def is_gpu(resource: str) -> bool:
    """Whether an extended resource counts whole GPUs, such as nvidia.com/gpu. Slices (MIG) cannot meet over NCCL: one process has them."""
    return resource.endswith("/gpu")


def peak_flops(device: str) -> float | None:
    """Peak of a GPU in dense bfloat16, FLOP/s; None for a card that is not in the table, or a slice (MIG) of one.

    Args:
        device: name as CUDA tells it, such as "NVIDIA H100 80GB HBM3" or "NVIDIA A100-SXM4-40GB".
    """
    words = set(re.split(r"[\s-]+", device.upper()))
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.upper().split())), None)
