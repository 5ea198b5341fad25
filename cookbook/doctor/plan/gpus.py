"""Figures of common GPUs, from their makers' data sheets. Flags of `lossbook doctor plan` take their place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, and the usual host of eight of them.

    memory   bytes
    flops    bfloat16 products per second with float32 sums, without sparsity
    link     bytes per second that a GPU takes in from others of its host
    network  bytes per second that a host takes in from other hosts, by all its adapters
    source   where the figures are from
    """

    name: str
    memory: float
    flops: float
    link: float
    network: float
    source: str


#: By the name that --gpu takes. Makers give links in both directions together; here is half of it.
GPUS = {
    "a100": Gpu("A100 SXM 80 GB", 80e9, 312e12, 300e9, 200e9, "NVIDIA A100 and DGX A100 data sheets: 8 x 200 Gb/s"),
    "h100": Gpu("H100 SXM", 80e9, 989e12, 450e9, 400e9, "NVIDIA H100 and DGX H100 data sheets: 8 x 400 Gb/s"),
    "h200": Gpu("H200 SXM", 141e9, 989e12, 450e9, 400e9, "NVIDIA H200 and DGX H200 data sheets: 8 x 400 Gb/s"),
    "b200": Gpu("B200", 180e9, 2250e12, 900e9, 400e9, "NVIDIA DGX B200 data sheet: 8 x 400 Gb/s"),
    "l40s": Gpu("L40S", 48e9, 362e12, 32e9, 25e9, "NVIDIA L40S data sheet: PCIe 4.0 x16; a host with 200 Gb/s"),
    "rtx4090": Gpu(
        "GeForce RTX 4090",
        *(24e9, 165e12, 32e9, 12.5e9),
        "NVIDIA Ada GPU Architecture whitepaper: PCIe 4.0 x16; a host with 100 Gb/s",
    ),
}
#: GPUs of a host.
HOST = 8
