"""Winograd's F(2 × 2, 3 × 3), 2.25 times fewer multiplications, beside oneDNN's direct convolution, layer by layer.

    python benchmarks/winograd.py            # a table: CPU time of one thread, and the errors beside float64

The transforms are plain tensor operations, eager and compiled by Inductor, which needs a C++ compiler. The sixteen
products alone are the part that no better transform can save (A. Lavin and S. Gray, arXiv:1509.09308).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

LAYERS = ((64, 64), (64, 32), (128, 32), (128, 16), (256, 16))
"""Channels, and pixels a side, of the network's layers of 64 channels or more."""

GROUPS = 8
TURNS = 9


def transform_kernel(kernel: Tensor) -> Tensor:
    """Turn (out, in, 3, 3) into (16, out, in): G·g·Gᵀ."""
    G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return torch.einsum("ij,ocjk,lk->iloc", G, kernel, G).reshape(16, *kernel.shape[:2]).contiguous()


def along(lines: list[Tensor]) -> list[Tensor]:
    """Bᵀ·d of four lines of pixels."""
    return [lines[0] - lines[2], lines[1] + lines[2], lines[2] - lines[1], lines[1] - lines[3]]


def winograd(image: Tensor, kernels: Tensor) -> Tensor:
    """Convolve a (B, H, W, C) image with transformed kernels, H and W even; zeros around it."""
    B, H, W, C = image.shape
    padded = pad(image, (0, 0, 1, 1, 1, 1))
    columns = [
        along([padded[:, row : row + H : 2, column : column + W : 2] for row in range(4)]) for column in range(4)
    ]
    tiles = torch.stack([tile for r in range(4) for tile in along([columns[c][r] for c in range(4)])])
    products = torch.bmm(tiles.reshape(16, -1, C), kernels.transpose(1, 2))
    m = products.reshape(16, B, H // 2, W // 2, -1).unbind(0)
    rows = [[m[j] + m[4 + j] + m[8 + j] for j in range(4)], [m[4 + j] - m[8 + j] - m[12 + j] for j in range(4)]]
    pixels = [torch.stack([t[0] + t[1] + t[2], t[1] - t[2] - t[3]], 3) for t in rows]
    return torch.stack(pixels, 2).reshape(B, H, W, -1)


def cpu_ms(run: Callable[[], object]) -> float:
    """Return the median CPU time of some turns, after one that is not counted."""
    run()
    times = []
    for _ in range(TURNS):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    compiled = torch.compile(winograd)
    print("| channels | pixels | direct ms | eager | compiled | products alone | error direct | error Winograd |")
    print("|---|---|---|---|---|---|---|---|")
    for channels, side_px in LAYERS:
        image = torch.randn(GROUPS, side_px, side_px, channels)
        kernel = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
        kernels, packed = transform_kernel(kernel), kernel.contiguous(memory_format=torch.channels_last)
        first, tiles = image.permute(0, 3, 1, 2), torch.randn(16, GROUPS * side_px**2 // 4, channels)
        with torch.inference_mode():
            true = conv2d(first.double(), kernel.double(), padding=1)
            errors = [
                float((found.double() - true).norm() / true.norm())
                for found in (conv2d(first, packed, padding=1), compiled(image, kernels).permute(0, 3, 1, 2))
            ]
            times = [
                cpu_ms(lambda: conv2d(first, packed, padding=1)),  # noqa: B023
                cpu_ms(lambda: winograd(image, kernels)),  # noqa: B023
                cpu_ms(lambda: compiled(image, kernels)),  # noqa: B023
                cpu_ms(lambda: torch.bmm(tiles, kernels.transpose(1, 2))),  # noqa: B023
            ]
        cells = [*(f"{each:.1f}" for each in times), *(f"{each:.1e}" for each in errors)]
        print(f"| {channels} | {side_px} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
