"""Pure tensor operations of the forward model.

Every function works on any device, in float32 or float64, and keeps no state. Letters: see
``ptycho_torch.data.axes``. Equations and their clauses: <doc-ref type="contract">specs/stages.yaml</doc-ref>.

From the patches made here to whole objects: ``ptycho_torch.reconstruction.reassembly``. Their pictures:
``ptycho_torch.reconstruction.pictures``. All of it in one call: ``ptycho_torch.inference``, see <doc-ref
type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from typing import Any

import torch
from jaxtyping import Complex, Float, Num
from torch import Tensor

from ptycho_torch.data.axes import Canvas, ExitWave, GroupAmplitude, GroupViews, OffsetsPx, Patches
from ptycho_torch.errors import DataContractError

MERGE_FLOOR = 0.001
"""Added to the count of patches that cover a canvas pixel, as the reference does (clause ``merged``)."""


def shift_matrix(shift_px: Float[Tensor, "n"], out_px: int, in_px: int, start_px: int = 0) -> Float[Tensor, "n out in"]:
    """Write a one-dimensional bilinear shift as one sparse-looking matrix for each shift.

    Row i samples the input at i + start − shift:  A[i, j] = (1 − f)·[j = k] + f·[j = k + 1],
    where k + f = i + start − shift, k an integer and 0 ≤ f < 1. Samples outside the input are zero.

    A matrix product in place of gathered pixels: its adjoint is a product too, so that gradients on a
    GPU do not depend on the order of atomic additions.

    Args:
        shift_px: pixels; positive moves content to larger indices.
        out_px: number of output pixels.
        in_px: number of input pixels.
        start_px: input index that output pixel 0 shows at zero shift.

    >>> shift_matrix(torch.tensor([0.25]), out_px=3, in_px=3)[0]
    tensor([[0.7500, 0.0000, 0.0000],
            [0.2500, 0.7500, 0.0000],
            [0.0000, 0.2500, 0.7500]])
    """
    whole = torch.floor(-shift_px)
    fraction = (-shift_px - whole)[:, None, None]
    outputs = torch.arange(out_px, device=shift_px.device)
    inputs = torch.arange(in_px, device=shift_px.device)
    distance = (inputs[None, :] - outputs[:, None] - start_px).to(shift_px.dtype)[None]  # (1, out, in)
    lower = distance == whole[:, None, None]
    upper = distance == whole[:, None, None] + 1
    zero = 0 * fraction  # Not a plain zero, so that a shift that is no number shows in every pixel.
    return torch.where(lower, 1 - fraction, zero) + torch.where(upper, fraction, zero)


def _resample(
    images: Num[Tensor, "n H W"], offsets_px: Float[Tensor, "n 2"], out_px: tuple[int, int], start_px: int
) -> Num[Tensor, "n h w"]:
    """Shift images by (x, y) offsets and keep ``out_px`` rows and columns from ``start_px`` on."""
    _, height, width = images.shape
    along_x = shift_matrix(offsets_px[:, 0], out_px[1], width, start_px)
    along_y = shift_matrix(offsets_px[:, 1], out_px[0], height, start_px)
    if images.is_complex():
        # The shift is real: two real products cost half of one complex product.
        real = along_y @ images.real @ along_x.mT
        imag = along_y @ images.imag @ along_x.mT
        return torch.complex(real, imag)
    return along_y @ images @ along_x.mT


def translate(images: Num[Tensor, "n H W"], offsets_px: Float[Tensor, "n 2"]) -> Num[Tensor, "n H W"]:
    """Shift each image by its offset, bilinearly, with zeros outside.

    T(image, (dx, dy)): output pixel (x, y) samples the image at (x − dx, y − dy), and each of the four
    neighbours that lies outside the image counts as zero.

    Args:
        images: real or complex images.
        offsets_px: (dx, dy) in pixels; positive moves content to larger x, y.

    >>> translate(torch.eye(3)[None], torch.tensor([[1.0, 0.0]]))[0]
    tensor([[0., 1., 0.],
            [0., 0., 1.],
            [0., 0., 0.]])
    """
    _, height, width = images.shape
    return _resample(images, offsets_px, (height, width), 0)


def doubled_kernel(kernel: Float[Tensor, "G F 3 3"]) -> Float[Tensor, "4*G F 2 2"]:
    """Write a 3 × 3 kernel that reads doubled pixels as four 2 × 2 kernels that read the pixels themselves.

    After doubling, the three rows around an even row are pixel rows r − 1, r, r, those around an odd row r, r, r + 1:
    kernel rows (k₀, k₁, k₂) become (k₀, k₁ + k₂) and (k₀ + k₁, k₂). Columns likewise. The outputs are in the order
    (row parity, column parity, G).

    >>> doubled_kernel(torch.ones(1, 1, 3, 3))[:, 0, 0]
    tensor([[1., 2.],
            [2., 1.],
            [2., 4.],
            [4., 2.]])
    """
    G, F, _, _ = kernel.shape
    first, middle, last = kernel.unbind(2)
    rows = torch.stack([first, middle + last, first + middle, last], dim=2).reshape(G, F, 2, 2, 3)
    first, middle, last = rows.unbind(-1)
    both = torch.stack([first, middle + last, first + middle, last], dim=-1).reshape(G, F, 2, 2, 2, 2)
    kernels = both.permute(2, 4, 0, 1, 3, 5).reshape(4 * G, F, 2, 2)
    return kernels.contiguous(memory_format=torch.channels_last)


class _Interleave(torch.autograd.Function):
    """Put the four parities of ``doubled_kernel`` in their places: out[2r + a, 2c + b] = parities[r + a, c + b, a, b].

    Every output pixel has an input of its own, so both directions are one copy.
    """

    @staticmethod
    def _placed(parities: Tensor) -> Tensor:
        B, rows, columns, channels = parities.shape
        G = channels // 4
        row, pixel = columns * channels, channels
        size = (B, rows - 1, 2, columns - 1, 2, G)
        return parities.as_strided(size, (rows * row, row, row + 2 * G, pixel, pixel + G, 1))

    @staticmethod
    def forward(parities: Tensor) -> Tensor:
        B, rows, columns, channels = parities.shape
        return _Interleave._placed(parities).reshape(B, 2 * (rows - 1), 2 * (columns - 1), channels // 4)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parities = grad.new_zeros(ctx.shape)
        placed = _Interleave._placed(parities)
        placed.copy_(grad.reshape(placed.shape))
        return parities


def convolve_doubled(
    features: Float[Tensor, "B F H W"], kernel: Float[Tensor, "G F 3 3"], bias: Float[Tensor, "G"]
) -> Float[Tensor, "B G h w"]:
    """Convolve the nearest-neighbour doubling of an image, without making it.

    out = kernel ⋆ up(features) + bias, zero-padded by one pixel, in 16 of 36 multiplications: a 3 × 3 window
    on doubled pixels sees no more than 2 × 2 different ones. Differs from the two steps by rounding only.

    >>> convolve_doubled(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3), torch.zeros(1))[0, 0]
    tensor([[4., 4.],
            [4., 4.]])
    """
    parities = torch.nn.functional.conv2d(features, doubled_kernel(kernel), bias.repeat(4), padding=1)
    channels_last = parities.permute(0, 2, 3, 1).contiguous()
    doubled: Tensor = _Interleave.apply(channels_last)  # type: ignore[no-untyped-call]  # (B, h, w, G)
    return doubled.permute(0, 3, 1, 2)


def central_mask(N: int, *, device: torch.device | None = None, dtype: torch.dtype) -> Float[Tensor, "N N"]:
    """Return 1 inside the central N/2 × N/2 square and 0 outside it.

    >>> central_mask(4, dtype=torch.float32).sum()
    tensor(4.)
    """
    line = _central_line(N, device=device, dtype=dtype)
    return line[:, None] * line[None, :]


def _central_line(N: int, *, device: torch.device | None, dtype: torch.dtype) -> Float[Tensor, "N"]:
    line = torch.zeros(N, device=device, dtype=dtype)
    line[N // 4 : N // 4 + N // 2] = 1
    return line


def pad_to_canvas(patches: Patches, canvas_px: int) -> Canvas:
    """Put the one patch of a group in the middle of a canvas of zeros (clause ``merged``, object_big = false)."""
    margin = (canvas_px - patches.shape[-1]) // 2
    return torch.nn.functional.pad(patches, (margin, margin, margin, margin))


def merge_patches(patches: Patches, offsets_px: OffsetsPx, canvas_px: int) -> Canvas:
    """Sum the patches of a group at their places and divide by how many central squares cover each pixel.

    merged = Σ_c T(patch_c, −o_c) / (Σ_c T(mask, −o_c) + 0.001)    [clause ``merged``]

    The numerator is the whole patch; only the denominator uses the mask, which is 1 in the central
    N/2 × N/2 square. Where the border of one patch alone reaches, values are large, as in the reference.
    Offsets are used as given and each group has its own canvas, whatever the batch (REF-01, REF-07).

    Args:
        patches: one patch for each position of the group.
        offsets_px: o_c, minus the position relative to the group's mean.
        canvas_px: P; parts of a patch that reach outside the canvas are dropped, as the reference does.

    Raises:
        DataContractError: patches and offsets differ in B or C.
    """
    B, C, N, _ = patches.shape
    if offsets_px.shape != (B, C, 1, 2):
        raise DataContractError(
            f"offsets_px has shape {tuple(offsets_px.shape)}, expected {(B, C, 1, 2)}: one (x, y) for each patch "
            "(clause merged)."
        )
    start = -((canvas_px - N) // 2)
    to_place = -offsets_px.reshape(B * C, 2)
    along_x = shift_matrix(to_place[:, 0], canvas_px, N, start)
    along_y = shift_matrix(to_place[:, 1], canvas_px, N, start)
    placed = _resample(patches.reshape(B * C, N, N), to_place, (canvas_px, canvas_px), start)  # (B*C, P, P)
    line = _central_line(N, device=patches.device, dtype=to_place.dtype)
    # The mask is an outer product, and so is its shift.
    covered = (along_y @ line)[:, :, None] * (along_x @ line)[:, None, :]  # (B*C, P, P)
    total = placed.reshape(B, C, canvas_px, canvas_px).sum(1, keepdim=True)
    count = covered.reshape(B, C, canvas_px, canvas_px).sum(1, keepdim=True)
    return total / (count + MERGE_FLOOR)


def trim_canvas(canvas: Canvas, N: int) -> Complex[Tensor, "B 1 N N"]:
    """Return the central N × N of each canvas (clause ``object``)."""
    margin = (canvas.shape[-1] - N) // 2
    return canvas[..., margin : margin + N, margin : margin + N]


def extract_views(canvas: Canvas, offsets_px: OffsetsPx, N: int) -> GroupViews:
    """Cut what each position of a group sees out of the group's canvas.

    view_c = central N × N of T(merged, +o_c)    [clause ``views``]
    """
    B, C, _, _ = offsets_px.shape
    _, _, P, _ = canvas.shape
    repeated = canvas.expand(B, C, P, P).reshape(B * C, P, P)
    views = _resample(repeated, offsets_px.reshape(B * C, 2), (N, N), (P - N) // 2)  # (B*C, N, N)
    return views.reshape(B, C, N, N)


def illuminate(
    views: GroupViews, probe: Complex[Tensor, "*group M N N"], *, smoothing_sigma: float, disk: Tensor | None
) -> ExitWave:
    """Multiply views by every probe mode, then blur and mask as configured.

    exit_wave_m = disk · G_σ(views · probe_m)    [clause ``exit_wave``]

    Args:
        views: object views.
        probe: (M, N, N) for all, or (B, C, M, N, N) for a probe of each pattern's own.
        smoothing_sigma: σ of ``smooth`` in pixels; 0 leaves the wave as it is.
        disk: (N, N) mask of ``ptycho_torch.data.probe.disk_mask``, or None.
    """
    wave = views[:, :, None] * probe
    if smoothing_sigma > 0:
        wave = smooth(wave, smoothing_sigma)
    return wave if disk is None else wave * disk


def smooth(images: Num[Tensor, "*any H W"], sigma_px: float) -> Num[Tensor, "*any H W"]:
    """Convolve with a 3 × 3 Gaussian; the border is mirrored without repeating the edge pixel.

    Weights are the outer product of softmax(−k² / (2σ²)), k = −1, 0, 1    [clause ``exit_wave``]
    """
    k = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    side, centre, _ = torch.softmax(-(k**2) / (2 * sigma_px**2), dim=0).tolist()
    rows = torch.cat([images[..., 1:2, :], images, images[..., -2:-1, :]], dim=-2)
    images = side * (rows[..., :-2, :] + rows[..., 2:, :]) + centre * rows[..., 1:-1, :]
    columns = torch.cat([images[..., 1:2], images, images[..., -2:-1]], dim=-1)
    smoothed: Tensor = side * (columns[..., :-2] + columns[..., 2:]) + centre * columns[..., 1:-1]
    return smoothed


def diffract(exit_wave: ExitWave) -> GroupAmplitude:
    """Propagate to the detector: the amplitude of the summed intensity of all modes.

    amplitude = sqrt(fftshift(Σ_m |FFT2(exit_wave_m)|² / N²))    [clause ``amplitude``]

    Its gradient at a field of exactly zero is zero; the reference's is not finite there (REF-05).
    """
    N = exit_wave.shape[-1]
    field = torch.fft.fft2(exit_wave)
    intensity = (field.real.square() + field.imag.square()).sum(dim=2) / N**2  # (B, C, N, N)
    intensity = torch.fft.fftshift(intensity, dim=(-2, -1))
    positive = intensity > 0
    return torch.where(positive, torch.where(positive, intensity, 1).sqrt(), 0)


def relative_offsets(positions_px: Float[Tensor, "B C 1 2"]) -> OffsetsPx:
    """Return o_c = −(r_c − r̄): minus each position relative to its group's mean.

    >>> relative_offsets(torch.tensor([[[[1.0, 0.0]], [[3.0, 0.0]]]])).flatten()
    tensor([ 1., -0., -1., -0.])
    """
    return -(positions_px - positions_px.mean(dim=1, keepdim=True))


def target_object(ground_truth: Complex[Tensor, "B C N N"], offsets_px: OffsetsPx) -> Complex[Tensor, "B 1 N N"]:
    """Return what the object of each group should be: the first ground-truth patch, shifted by −o_0 to its place.

    Args:
        ground_truth: the patches at the group's positions, as ``cut_patches`` makes them.
        offsets_px: o_c, minus the position relative to the group's mean.
    """
    return translate(ground_truth[:, 0], -offsets_px[:, 0, 0])[:, None]


def cut_patches(image: Num[Tensor, "H W"], positions_px: Float[Tensor, "n 2"], N: int) -> Num[Tensor, "n N N"]:
    """Cut ground-truth patches out of a whole object.

    Pixel (row j, column i) of the patch at (x, y) samples the object bilinearly at
    (row y − N/2 + j, column x − N/2 + i); outside the object is zero.    [docs/reference_model.md §6]

    The reference cuts patches of groups at 2r̄ − r (REF-04); here the position means what it says.
    """
    corner = positions_px - N / 2
    whole = torch.floor(corner)
    fraction = corner - whole
    window = torch.arange(N + 1, device=image.device)
    x = whole[:, 0, None].long() + window  # (n, N+1)
    y = whole[:, 1, None].long() + window
    height, width = image.shape
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    pixels = image[y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]] * inside
    fx, fy = fraction[:, 0, None, None], fraction[:, 1, None, None]
    rows = (1 - fy) * pixels[:, :-1] + fy * pixels[:, 1:]
    return (1 - fx) * rows[:, :, :-1] + fx * rows[:, :, 1:]
