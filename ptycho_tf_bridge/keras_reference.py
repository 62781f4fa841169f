"""Our own Keras 3 model of the TensorFlow reference, written from its mathematics.

Arrays are channels-last: groups (B, H, W, C), folded patches (B*C, H, W, M), offsets (B, 1, 2, C) with
(x, y) on axis 2. Every stage is computed by one function, ``run_stages``, whose ``on_stage`` sees and may
replace each stage's output; so recording, teacher forcing and plain prediction run the same graph.

Importing this module needs no TensorFlow. Tensors are annotated ``Any``, since TensorFlow publishes no types.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ptycho_tf_bridge.backend import keras, tensorflow
from ptycho_tf_bridge.weights import check_weights, tensorflow_shapes, weight_table
from ptycho_torch.config_params import OUTER_CHANNELS, LossWeights, NetworkSettings

OnStage = Callable[[str, Any], Any]
"""Called with a stage's id and its output; what it returns is what later stages read."""

MERGE_EPSILON = 0.001
"""Added to the count of patches that cover a canvas pixel."""

MAX_PATCHES_PER_CALL = 64
"""From this many patches a call on, the TensorFlow reference folds the batch into one canvas (REF-01)."""

_COMPLEX = {"float32": "complex64", "float64": "complex128"}


def build_reference(
    settings: NetworkSettings,
    probe: np.ndarray,
    dtype: str = "float32",
    trainable_physics: bool = False,
    centre_offsets_over_batch: bool = False,
) -> Any:
    """Build the reference as a ``keras.Model``.

    The model takes (scaled amplitude s_I·X (B, N, N, C), offsets (B, 1, 2, C)) and returns (object
    (B, N, N, 1), predicted amplitude (B, N, N, C), predicted intensity (B, N, N, C)). Without trainable
    physics ``get_weights()`` has the order of the weight table, and of the reference's archives.

    Args:
        settings: what decides the graph and its fixed numbers.
        probe: (N, N), or (M, N, N) incoherent modes; complex, used as it is.
        dtype: "float32", or "float64" for a truth; complex stages follow it.
        trainable_physics: False keeps ln(s_I) and probe beside the network as plain variables, untracked,
            as the reference does under Keras 3 whatever its flags say (REF-02). True tracks and trains both,
            as its flags intend; the probe is then a (2, M, N, N) variable of real and imaginary parts, which
            Keras' Adam can update. To train one only, set ``trainable`` of the other to False.
        centre_offsets_over_batch: subtract the mean offset of the whole batch before merging, as the
            reference does (REF-07). False uses offsets as given.

    Raises:
        BackendMissingError: no TensorFlow.
        ValueError: dtype or probe shape that this network cannot have.
    """
    if dtype not in _COMPLEX:
        raise ValueError(f"dtype = {dtype!r}; the reference runs in 'float32' or 'float64'.")
    modes = _modes(probe, settings.N)
    return _model_class()(settings, modes, dtype, trainable_physics, centre_offsets_over_batch)


def _modes(probe: np.ndarray, n: int) -> np.ndarray:
    """Probe as (M, N, N)."""
    modes = probe[None] if probe.ndim == 2 else probe
    if modes.ndim != 3 or modes.shape[1:] != (n, n):
        raise ValueError(f"probe has shape {probe.shape}; expected ({n}, {n}) or (M, {n}, {n}).")
    return modes


@functools.cache
def _model_class() -> Any:
    """Create the model class on first use, since its base class is TensorFlow's."""
    tf = tensorflow()
    base: Any = keras().Model

    class PtychoReference(base):  # type: ignore[misc]
        """Convolutions by stage id, ln(s_I), the probe, and the wiring."""

        def __init__(
            self, settings: NetworkSettings, modes: np.ndarray, dtype: str, tracked: bool, centred: bool
        ) -> None:
            super().__init__(name="ptycho_reference", dtype=dtype)
            self.settings = settings
            self.float_dtype = dtype
            self.complex_dtype = _COMPLEX[dtype]
            self.centre_offsets_over_batch = centred
            self.convolutions = _convolutions(settings, dtype)
            self.tracks_physics = tracked
            if tracked:
                self.log_scale = self.add_weight(name="log_scale", shape=())
                self.probe = self.add_weight(name="probe", shape=(2, *modes.shape))
            else:
                self.log_scale = tf.Variable(np.zeros((), dtype), trainable=False)
                # The number of modes stays open, so that one model serves probes with any.
                any_modes = (None, *modes.shape[1:])
                self.probe = tf.Variable(modes.astype(self.complex_dtype), trainable=False, shape=any_modes)
            set_physics(self, settings.intensity_scale, modes)
            self.built = True

        def call(self, inputs: tuple[Any, Any]) -> tuple[Any, Any, Any]:
            return run_stages(self, *inputs)

    return PtychoReference


def _convolutions(settings: NetworkSettings, dtype: str) -> dict[str, Any]:
    """Build the 3 × 3 convolutions, without activation, by stage id in ``get_weights()`` order."""
    layers = {}
    for entry in weight_table(settings):
        layer = keras().layers.Conv2D(entry.outputs, 3, padding="same", dtype=dtype, name=entry.stage)
        layer.build((None, None, None, entry.inputs))
        layers[entry.stage] = layer
    return layers


def set_physics(model: Any, intensity_scale: float, probe: np.ndarray) -> None:
    """Set s_I and the probe, (N, N) or (M, N, N), of a built model."""
    modes = _modes(probe, model.settings.N)
    model.log_scale.assign(np.asarray(math.log(intensity_scale), model.float_dtype))
    if model.tracks_physics:
        model.probe.assign(np.stack([modes.real, modes.imag]).astype(model.float_dtype))
    else:
        model.probe.assign(modes.astype(model.complex_dtype))


def named_weights(model: Any) -> dict[str, np.ndarray]:
    """Read the convolutions' weights by TensorFlow name, in ``get_weights()`` order."""
    return {name: variable.numpy() for name, variable in named_variables(model).items()}


def named_variables(model: Any) -> dict[str, Any]:
    """Name each convolution's variable: ``STAGE.kernel`` (3, 3, in, out) and ``STAGE.bias`` (out,)."""
    variables = {}
    for entry in weight_table(model.settings):
        layer = model.convolutions[entry.stage]
        variables[entry.kernel_name] = layer.kernel.value
        variables[entry.bias_name] = layer.bias.value
    return variables


def set_named_weights(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Set every convolution's weights, cast to the model's dtype.

    Raises:
        WeightMapError: a weight that is unknown, missing or misshapen; the model is then left as it was.
    """
    check_weights(weights, tensorflow_shapes(model.settings), "TensorFlow")
    for name, variable in named_variables(model).items():
        variable.assign(np.asarray(weights[name], model.float_dtype))


def keep(_stage: str, value: Any) -> Any:
    """Return a stage's output unchanged: the ``on_stage`` of a plain run."""
    return value


def run_stages(model: Any, scaled_amplitude: Any, offsets_px: Any, on_stage: OnStage = keep) -> tuple[Any, Any, Any]:
    """Compute every stage in order; the only wiring there is.

    Args:
        model: from ``build_reference``.
        scaled_amplitude: (B, N, N, C) s_I·X.
        offsets_px: (B, 1, 2, C), minus the patch position relative to its group's mean.
        on_stage: sees each output, and returns what later stages read in its place.

    Returns:
        object (B, N, N, 1) complex, predicted amplitude and predicted intensity (B, N, N, C).
    """
    tf, settings = tensorflow(), model.settings
    q, N = settings.padding_px, settings.N
    offsets = _per_patch(offsets_px)  # (B*C, 2)
    scale = tf.exp(tf.convert_to_tensor(model.log_scale))
    features = on_stage("normalized_input", scaled_amplitude / scale)
    features = _encode(model, features, on_stage)
    amplitude = _decode(model, "amp", features, on_stage)
    phase = _decode(model, "phase", features, on_stage)
    patches = on_stage("patches", tf.complex(amplitude * tf.cos(phase), amplitude * tf.sin(phase)))
    merged = on_stage("merged", _merge(model, patches, offsets))
    obj = on_stage("object", merged[:, q : q + N, q : q + N])
    views = on_stage("views", extract_views(merged, offsets, q, N))
    exit_wave = on_stage("exit_wave", _illuminate(model, views))
    field_amplitude = on_stage("amplitude", diffract(exit_wave, settings.C))
    predicted = on_stage("predicted_amplitude", scale * field_amplitude)
    return obj, predicted, on_stage("predicted_intensity", tf.square(predicted))


def _encode(model: Any, features: Any, on_stage: OnStage) -> Any:
    tf = tensorflow()
    for i in range(len(model.settings.encoder_widths)):
        for name in (f"encoder.{i}.conv1", f"encoder.{i}.conv2"):
            features = on_stage(name, tf.nn.relu(model.convolutions[name](features)))
        features = on_stage(f"encoder.{i}.pool", tf.nn.max_pool2d(features, 2, 2, "VALID"))
    return features


def _decode(model: Any, decoder: str, features: Any, on_stage: OnStage) -> Any:
    """Run ``decoder_amp`` or ``decoder_phase`` from the encoder's output to (B, N, N, K)."""
    tf, settings = tensorflow(), model.settings
    prefix = f"decoder_{decoder}"
    activate = _activation(decoder, settings)
    for i in range(len(settings.decoder_widths)):
        for name in (f"{prefix}.{i}.conv1", f"{prefix}.{i}.conv2"):
            features = on_stage(name, tf.nn.relu(model.convolutions[name](features)))
        features = on_stage(f"{prefix}.{i}.up", upsample(features))
    if not settings.pad_object:
        head = _outer_path(model, prefix, features, on_stage)
        return on_stage(f"{prefix}.output", activate(head))
    central = model.convolutions[f"{prefix}.central"](features[..., :-OUTER_CHANNELS])
    central = on_stage(f"{prefix}.central", central)
    output = pad_pixels(on_stage(f"{prefix}.activation", activate(central)), settings.N // 4)
    if settings.has_outer_path:
        head = _outer_path(model, prefix, features[..., -OUTER_CHANNELS:], on_stage)
        border = on_stage(f"{prefix}.outer.swish", tf.nn.silu(head))
        output += border * (1 - central_mask(settings.N, model.float_dtype))
    return on_stage(f"{prefix}.output", output)


def _outer_path(model: Any, prefix: str, features: Any, on_stage: OnStage) -> Any:
    tf = tensorflow()
    for name in (f"{prefix}.outer.conv1", f"{prefix}.outer.conv2"):
        features = on_stage(name, tf.nn.relu(model.convolutions[name](features)))
    features = on_stage(f"{prefix}.outer.up", upsample(features))
    return on_stage(f"{prefix}.outer.head", model.convolutions[f"{prefix}.outer.head"](features))


def _activation(decoder: str, settings: NetworkSettings) -> Callable[[Any], Any]:
    """π·tanh for the phase; the configured function for the amplitude."""
    tf = tensorflow()
    if decoder == "phase":
        return lambda value: math.pi * tf.tanh(value)
    by_name = {"sigmoid": tf.sigmoid, "swish": tf.nn.silu, "softplus": tf.nn.softplus, "relu": tf.nn.relu}
    activate: Callable[[Any], Any] = by_name[settings.amp_activation]
    return activate


def upsample(image: Any) -> Any:
    """Repeat every pixel of (B, H, W, K) twice along rows and columns."""
    tf = tensorflow()
    return tf.repeat(tf.repeat(image, 2, axis=1), 2, axis=2)


def pad_pixels(image: Any, q: int) -> Any:
    """Surround (B, H, W, K) with q zero pixels on every side."""
    return tensorflow().pad(image, [[0, 0], [q, q], [q, q], [0, 0]])


def central_mask(N: int, dtype: str) -> np.ndarray:
    """Ones in the central N/2 × N/2 square, as (1, N, N, 1)."""
    mask = np.zeros((1, N, N, 1), dtype)
    mask[:, N // 4 : -(N // 4), N // 4 : -(N // 4)] = 1
    return mask


def _per_patch(offsets_px: Any) -> Any:
    """(B, 1, 2, C) → (B*C, 2), channel fastest."""
    tf = tensorflow()
    return tf.reshape(tf.transpose(offsets_px, [0, 3, 1, 2]), [-1, 2])


def _pairs(field: Any) -> Any:
    """Complex (n, H, W, 1) → real (n, H, W, 2), so that both parts go through one real operation."""
    tf = tensorflow()
    return tf.concat([tf.math.real(field), tf.math.imag(field)], axis=-1)


def _from_pairs(pairs: Any) -> Any:
    """Undo ``_pairs``."""
    return tensorflow().complex(pairs[..., :1], pairs[..., 1:])


def translate(image: Any, offsets_px: Any) -> Any:
    """Move the content of each image, bilinearly, with zeros outside.

    T(image, (dx, dy))(x, y) = image(x − dx, y − dy); positive offsets move content to larger x and y. Each of
    the four neighbours that lies outside the image counts as zero.

    Args:
        image: (n, H, W, K) real.
        offsets_px: (n, 2), (x, y).
    """
    tf = tensorflow()
    n, H, W, K = tf.unstack(tf.shape(image))
    x = tf.cast(tf.range(W), image.dtype)[None, None, :] - offsets_px[:, 0, None, None]  # (n, 1, W)
    y = tf.cast(tf.range(H), image.dtype)[None, :, None] - offsets_px[:, 1, None, None]  # (n, H, 1)
    pixels = tf.reshape(image, [n, H * W, K])
    total = tf.zeros_like(image)
    for column, x_weight in _neighbours(x):
        for row, y_weight in _neighbours(y):
            inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)  # (n, H, W)
            index = tf.clip_by_value(row, 0, H - 1) * W + tf.clip_by_value(column, 0, W - 1)
            value = tf.gather(pixels, index, batch_dims=1)  # (n, H, W, K)
            weight = tf.where(inside, x_weight * y_weight, 0)
            total += value * weight[..., None]
    return total


def _neighbours(position: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Index and linear weight of the two grid points around each position."""
    tf = tensorflow()
    lower = tf.floor(position)
    fraction = position - lower
    index = tf.cast(lower, tf.int32)
    return (index, 1 - fraction), (index + 1, fraction)


def _merge(model: Any, patches: Any, offsets: Any) -> Any:
    """Put the patches of each group on one canvas: (B, N, N, K) → (B, P, P, 1).

    merged = Σ_c T(patch_c, −o_c) / (Σ_c T(mask, −o_c) + 0.001) with object_big, else the padded patch. The
    numerator is the whole patch; the mask is 1 in the central N/2 × N/2 square only.
    """
    tf, settings = tensorflow(), model.settings
    q, N, P, C = settings.padding_px, settings.N, settings.canvas_px, settings.C
    if not settings.object_big:
        return pad_pixels(patches, q)
    if model.centre_offsets_over_batch:
        offsets -= tf.reduce_mean(offsets, axis=0, keepdims=True)
    flat = tf.reshape(tf.transpose(patches, [0, 3, 1, 2]), [-1, N, N, 1])  # (B*C, N, N, 1)
    shifted = translate(pad_pixels(_pairs(flat), q), -offsets)
    mask = tf.repeat(tf.constant(central_mask(N, model.float_dtype)), tf.shape(flat)[0], axis=0)
    cover = translate(pad_pixels(mask, q), -offsets)
    total = tf.reduce_sum(tf.reshape(shifted, [-1, C, P, P, 2]), axis=1)  # (B, P, P, 2)
    count = tf.reduce_sum(tf.reshape(cover, [-1, C, P, P, 1]), axis=1)
    return _from_pairs(total / (count + MERGE_EPSILON))


def extract_views(merged: Any, offsets: Any, q: int, N: int) -> Any:
    """Cut what each patch position sees: (B, P, P, 1) → (B*C, N, N, 1), T(merged, +o_c) cropped.

    ``offsets`` are (B*C, 2), so C is known from its length.
    """
    tf = tensorflow()
    channels = tf.shape(offsets)[0] // tf.shape(merged)[0]
    shifted = translate(tf.repeat(_pairs(merged), channels, axis=0), offsets)
    return _from_pairs(shifted)[:, q : q + N, q : q + N]


def _illuminate(model: Any, views: Any) -> Any:
    """Multiply views by each probe mode, then blur and mask as configured: (B*C, N, N, M)."""
    tf, settings = tensorflow(), model.settings
    probe = tf.convert_to_tensor(model.probe)
    if model.tracks_physics:
        probe = tf.complex(probe[0], probe[1])
    exit_wave = views * tf.transpose(probe, [1, 2, 0])
    if settings.gaussian_smoothing_sigma > 0:
        sigma = settings.gaussian_smoothing_sigma
        exit_wave = tf.complex(blur(tf.math.real(exit_wave), sigma), blur(tf.math.imag(exit_wave), sigma))
    if settings.probe_mask:
        exit_wave *= tf.constant(disk_mask(settings.N)[:, :, None], model.complex_dtype)
    return exit_wave


def blur(image: Any, sigma_px: float) -> Any:
    """Convolve (n, H, W, K) real with the 3 × 3 outer product of softmax(−k²/(2σ²)), k = −1, 0, 1.

    Padding mirrors the image and does not repeat the edge.
    """
    tf = tensorflow()
    side = math.exp(-1 / (2 * sigma_px**2))
    taps = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    padded = tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT")
    rows = taps[0] * padded[:, :-2] + taps[1] * padded[:, 1:-1] + taps[2] * padded[:, 2:]
    return taps[0] * rows[:, :, :-2] + taps[1] * rows[:, :, 1:-1] + taps[2] * rows[:, :, 2:]


def disk_mask(N: int) -> np.ndarray:
    """(N, N): 1 where the radius of pixel (i − N/2 + ½, j − N/2 + ½) is below N/4, else 0."""
    axis = np.arange(N) - N / 2 + 0.5
    inside: np.ndarray = np.hypot(axis[:, None], axis[None, :]) < N // 4
    return inside.astype(np.float64)


def diffract(exit_wave: Any, channels: int) -> Any:
    """Far-field amplitude, zero frequency in the centre: (B*C, N, N, M) → (B, N, N, C).

    amplitude = sqrt(fftshift(Σ_m |FFT2(exit_wave_m)|² / N²)). Its gradient at a zero field is not finite,
    as in the reference (REF-05).
    """
    tf = tensorflow()
    N = exit_wave.shape[1]
    field = tf.signal.fft2d(tf.transpose(exit_wave, [0, 3, 1, 2]))
    power = tf.square(tf.math.real(field)) + tf.square(tf.math.imag(field))
    intensity = tf.signal.fftshift(tf.reduce_sum(power, axis=1) / N**2, axes=(1, 2))  # (B*C, N, N)
    return tf.transpose(tf.reshape(tf.sqrt(intensity), [-1, channels, N, N]), [0, 2, 3, 1])


def poisson_nll(predicted_intensity: Any, measured_intensity: Any) -> Any:
    """Mean of I − I₀·ln I, unclamped as in the reference: NaN where both are 0 (REF-05)."""
    tf = tensorflow()
    return tf.reduce_mean(predicted_intensity - measured_intensity * tf.math.log(predicted_intensity))


def amplitude_mae(predicted_amplitude: Any, measured_amplitude: Any) -> Any:
    """Mean of |predicted − measured|, both scaled by s_I."""
    tf = tensorflow()
    return tf.reduce_mean(tf.abs(predicted_amplitude - measured_amplitude))


def total_variation(obj: Any) -> Any:
    """Sum, over batch and pixels, of squared neighbour differences of real and imaginary part.

    The formula as intended; under Keras 3 the reference sees the real part only (REF-06).
    """
    tf = tensorflow()
    pairs = _pairs(obj)
    rows, columns = pairs[:, 1:] - pairs[:, :-1], pairs[:, :, 1:] - pairs[:, :, :-1]
    return tf.reduce_sum(tf.square(rows)) + tf.reduce_sum(tf.square(columns))


def object_mae(obj: Any, target: Any) -> Any:
    """mean||o| − |t|| + mean|arg o − arg t|, both (B, N, N, 1) complex; phases in rad, not unwrapped."""
    tf = tensorflow()
    amplitude = tf.reduce_mean(tf.abs(tf.abs(obj) - tf.abs(target)))
    return amplitude + tf.reduce_mean(tf.abs(tf.math.angle(obj) - tf.math.angle(target)))


def realspace_target(patches: Any, offsets_px: Any) -> Any:
    """Make t (B, N, N, 1) from ground-truth patches (B, N, N, C), complex: channel 0 shifted by −o_0."""
    return _from_pairs(translate(_pairs(patches[..., :1]), -offsets_px[:, 0, :, 0]))


def losses(
    settings: NetworkSettings,
    loss_weights: LossWeights,
    outputs: tuple[Any, Any, Any],
    scaled_amplitude: Any,
    target: Any = None,
) -> dict[str, Any]:
    """Compute ``nll``, ``mae`` and their weighted ``total`` with the real-space terms.

    total = nll_weight·NLL + mae_weight·MAE
            + realspace_weight·(tv_weight·TV + realspace_mae_weight·MAE_object).
    A term of weight 0 is left out, so that a value of it that is not finite stays out of the total.

    Args:
        settings: says whether the object is masked first (probe_big false).
        loss_weights: weights of the terms.
        outputs: (object, predicted amplitude, predicted intensity).
        scaled_amplitude: (B, N, N, C) measured s_I·X.
        target: (B, N, N, 1) complex ground truth, needed where the object's MAE has weight.

    Raises:
        ValueError: the object's MAE has weight but there is no target.
    """
    tf = tensorflow()
    obj, predicted_amplitude, predicted_intensity = outputs
    nll = poisson_nll(predicted_intensity, tf.square(scaled_amplitude))
    mae = amplitude_mae(predicted_amplitude, scaled_amplitude)
    terms = [(loss_weights.nll_weight, nll), (loss_weights.mae_weight, mae)]
    if loss_weights.realspace_weight:
        if not settings.probe_big:
            obj *= tf.constant(central_mask(settings.N, "float64"), obj.dtype)
        if loss_weights.tv_weight:
            terms.append((loss_weights.realspace_weight * loss_weights.tv_weight, total_variation(obj)))
        if loss_weights.realspace_mae_weight:
            if target is None:
                raise ValueError("realspace_mae_weight is above 0 but there is no ground-truth target.")
            weight = loss_weights.realspace_weight * loss_weights.realspace_mae_weight
            terms.append((weight, object_mae(obj, target)))
    total = sum((weight * value for weight, value in terms if weight), tf.zeros_like(nll))
    return {"nll": nll, "mae": mae, "total": total}


def adam(learning_rate: float, dtype: str = "float32", clip: float | None = None, clip_algorithm: str = "norm") -> Any:
    """Make Keras' Adam (β 0.9/0.999, ε 1e-7) whose constants have the full precision of ``dtype``.

    ``clip`` limits the norm of all gradients together, or with ``clip_algorithm`` "value" each element.

    Keras holds the learning rate in its global float type, and TensorFlow reads a Python float as float32
    even where it is cast to float64, which moves 0.9 by 2.4e-8.
    """
    config, optimizers = keras().config, keras().optimizers
    clipping = {"norm": "global_clipnorm", "value": "clipvalue"}[clip_algorithm]
    before = config.floatx()
    config.set_floatx(dtype)
    try:
        return optimizers.Adam(
            learning_rate=learning_rate,
            beta_1=np.dtype(dtype).type(0.9),
            beta_2=np.dtype(dtype).type(0.999),
            epsilon=np.dtype(dtype).type(1e-7),
            **({} if clip is None else {clipping: clip}),
        )
    finally:
        config.set_floatx(before)
