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
    """Write a one-dimensional bilinear shift as one banded matrix for each shift.

    Row i samples the input at i + start − shift:  A[i, j] = (1 − f)·[j = k] + f·[j = k + 1],
    where k + f = i + start − shift, k an integer and 0 ≤ f < 1. Samples outside the input are zero.

    A matrix product in place of gathered pixels: its adjoint is a product too, so that gradients on a
    GPU do not depend on the order of atomic additions. Along a diagonal, j − i, the matrix is constant, so that
    one line of ``out + in − 1`` numbers is all that is computed.

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
    whole = torch.floor(-shift_px)[:, None]
    fraction = -shift_px[:, None] - whole
    # As floating-point numbers, which a shift that is not finite makes every pixel so.
    diagonals = torch.arange(1 - out_px, in_px, device=shift_px.device).to(shift_px.dtype) - start_px
    line = (1 - (diagonals - whole - fraction).abs()).clamp_min(0)  # (n, out + in - 1)
    return line.unfold(1, in_px, 1).flip(1)


def _planes(images: Complex[Tensor, "*any H W"]) -> Float[Tensor, "*any H 2 W"]:
    """Put the real above the imaginary part of each row, so that one real product shifts both."""
    return torch.view_as_real(images.resolve_conj()).mT.contiguous()


def _joined(planes: Float[Tensor, "*any H 2 W"]) -> Complex[Tensor, "*any H W"]:
    """Undo ``_planes``."""
    return torch.complex(planes[..., 0, :], planes[..., 1, :])


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
    if images.is_complex():
        return torch.complex(translate(images.real, offsets_px), translate(images.imag, offsets_px))
    _, height, width = images.shape
    along_x, along_y = shift_matrix(offsets_px[:, 0], width, width), shift_matrix(offsets_px[:, 1], height, height)
    return along_y @ images @ along_x.mT


def doubled_kernel(kernel: Float[Tensor, "G F 3 3"]) -> Float[Tensor, "G F 4 4"]:
    """Write a 3 × 3 kernel that reads doubled pixels as what one pixel adds to the 4 × 4 pixels around its double.

    Pixel r lies at 2r and 2r + 1 after doubling, so rows 2r − 1 to 2r + 2 see it: through kernel row k₂ alone, through
    k₁ and k₂, through k₀ and k₁, through k₀ alone. Columns likewise.

    >>> doubled_kernel(torch.ones(1, 1, 3, 3))[0, 0]
    tensor([[1., 2., 2., 1.],
            [2., 4., 4., 2.],
            [2., 4., 4., 2.],
            [1., 2., 2., 1.]])
    """
    return torch.nn.functional.avg_pool2d(kernel.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)


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
    pixels_to_doubled = doubled_kernel(kernel).transpose(0, 1)
    return torch.nn.functional.conv_transpose2d(features, pixels_to_doubled, bias, stride=2, padding=1)


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
    along_x = shift_matrix(to_place[:, 0], canvas_px, N, start)  # (B*C, P, N)
    along_y = shift_matrix(to_place[:, 1], canvas_px, N, start)
    line = _central_line(N, device=patches.device, dtype=to_place.dtype)
    # The mask is an outer product, and so is its shift; both sums over the group are part of a product.
    covered_x, covered_y = ((along @ line).reshape(B, C, canvas_px) for along in (along_x, along_y))
    count = covered_y.mT @ covered_x  # (B, P, P)
    rows = _planes(patches).reshape(B * C, 2 * N, N) @ along_x.mT  # (B*C, 2*N, P)
    group_y = along_y.reshape(B, C, canvas_px, N).transpose(1, 2).reshape(B, canvas_px, C * N)
    total = (group_y @ rows.reshape(B, C * N, 2 * canvas_px)).reshape(B, canvas_px, 2, canvas_px)
    return _joined(total / (count[:, :, None] + MERGE_FLOOR))[:, None]


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
    shifts = offsets_px.reshape(B * C, 2)
    along_x, along_y = (shift_matrix(shifts[:, axis], N, P, (P - N) // 2) for axis in (0, 1))  # (B*C, N, P)
    rows = along_y.reshape(B, C * N, P) @ _planes(canvas).reshape(B, P, 2 * P)  # (B, C*N, 2*P)
    views = rows.reshape(B * C, 2 * N, P) @ along_x.mT  # (B*C, 2*N, N)
    return _joined(views.reshape(B, C, N, 2, N))


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


class _FiniteSqrt(torch.autograd.Function):
    """√x of x ≥ 0, whose gradient g / (2√x) is zero at zero."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return torch.where(root == 0, 0, grad / (2 * root))


def diffract(exit_wave: ExitWave) -> GroupAmplitude:
    """Propagate to the detector: the amplitude of the summed intensity of all modes.

    amplitude = sqrt(fftshift(Σ_m |FFT2(exit_wave_m)|² / N²))    [clause ``amplitude``]

    Its gradient at a field of exactly zero is zero; the reference's is not finite there (REF-05).
    """
    field = torch.fft.fft2(exit_wave, norm="ortho")
    intensity = (field.real.square() + field.imag.square()).sum(dim=2)  # (B, C, N, N)
    amplitude: Tensor = _FiniteSqrt.apply(torch.fft.fftshift(intensity, dim=(-2, -1)))  # type: ignore[no-untyped-call]
    return amplitude


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
