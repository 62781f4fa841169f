"""A stand-in for an installed reference package: the same modules, layers, dictionary and caches, and our equations."""

from __future__ import annotations

from pathlib import Path

_PARAMS = '''
"""One dictionary for the whole process, and its defaults, which come back whenever it is read."""
DEFAULT_CFG = {
    "N": 128, "gridsize": 2, "offset": 4, "max_position_jitter": 10, "n_filters_scale": 2, "object.big": True,
    "probe.big": False, "probe.mask": True, "pad_object": True, "amp_activation": "sigmoid",
    "gaussian_smoothing_sigma": 0.0, "intensity_scale.trainable": False, "probe.trainable": False,
    "mae_weight": 0.0, "nll_weight": 1.0, "realspace_weight": 0.0, "use_xla_translate": True,
}
cfg = DEFAULT_CFG.copy()

_sealed = False

def ensure_defaults():
    for key, value in DEFAULT_CFG.items():
        if key not in cfg:
            cfg[key] = value

def get(key):
    ensure_defaults()
    if key == "bigN":
        cfg["bigN"] = cfg["N"] + (cfg["gridsize"] - 1) * cfg["offset"]
    return cfg[key]

def set(key, value):
    cfg[key] = value

def params():
    ensure_defaults()
    return {**cfg, "bigN": get("bigN")}
'''

_CONFIG = (
    (Path(__file__).parent / "stand_in_config.py").read_text(encoding="utf-8")
    + """

def update_legacy_dict(cfg, obj):
    cfg.update({name: value for name, value in dataclass_to_legacy_dict(obj).items() if value is not None})
"""
)

_LAYERS = """
import keras
import numpy as np
import tensorflow as tf

from ptycho_tf_bridge import keras_reference as equations

class _Layer(keras.layers.Layer):
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Importing the package registers its layers with Keras for the whole process.
        keras.saving.register_keras_serializable(package="standin")(cls)

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

class CombineComplexLayer(_Layer):
    def call(self, inputs):
        amplitude, phase = inputs
        return tf.complex(amplitude * tf.cos(phase), amplitude * tf.sin(phase))

class ActivationLayer(_Layer):
    def __init__(self, activation_name, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.activation_name, self.scale = activation_name, scale
        self.function = {"tanh": tf.tanh, "sigmoid": tf.sigmoid, "swish": tf.nn.silu, "softplus": tf.nn.softplus,
                         "relu": tf.nn.relu}[activation_name]
    def call(self, x):
        return self.scale * self.function(x)
    def get_config(self):
        return super().get_config() | {"activation_name": self.activation_name, "scale": float(self.scale)}

class CenterMaskLayer(_Layer):
    def __init__(self, N, c=1, kind="border", **kwargs):
        super().__init__(**kwargs)
        self.N, self.c, self.kind = N, c, kind
    def call(self, x):
        return tf.ones_like(x) * (1 - equations.central_mask(self.N, "float32"))
    def get_config(self):
        return super().get_config() | {"N": self.N, "c": self.c, "kind": self.kind}

class ReassemblePatchesLayer(_Layer):
    def __init__(self, padded_size, N, gridsize, **kwargs):
        super().__init__(**kwargs)
        self.padded_size, self.N, self.gridsize = padded_size, N, gridsize
    def call(self, inputs):
        patches, positions = inputs
        C, P, N = self.gridsize ** 2, self.padded_size, self.N
        q = (P - N) // 2
        offsets = tf.reshape(tf.transpose(positions, [0, 3, 1, 2]), [-1, 2])
        flat = tf.reshape(tf.transpose(patches, [0, 3, 1, 2]), [-1, N, N, 1])
        pair = tf.concat([tf.math.real(flat), tf.math.imag(flat)], -1)
        shifted = equations.translate(equations.pad_pixels(pair, q), -offsets)
        mask = tf.repeat(tf.constant(equations.central_mask(N, "float32")), tf.shape(flat)[0], 0)
        cover = equations.translate(equations.pad_pixels(mask, q), -offsets)
        count = patches.shape[0]
        # The whole batch on one canvas (REF-01).
        groups = C if count is None or count * C < 64 else count * C
        total = tf.reduce_sum(tf.reshape(shifted, [-1, groups, P, P, 2]), 1)
        total /= tf.reduce_sum(tf.reshape(cover, [-1, groups, P, P, 1]), 1) + 0.001
        return tf.complex(total[..., :1], total[..., 1:])
    def get_config(self):
        return super().get_config() | {"padded_size": self.padded_size, "N": self.N, "gridsize": self.gridsize}

class PadReconstructionLayer(_Layer):
    def __init__(self, padding, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
    def call(self, x):
        return equations.pad_pixels(x, self.padding)
    def get_config(self):
        return super().get_config() | {"padding": self.padding}

class TrimReconstructionLayer(_Layer):
    def __init__(self, output_size, **kwargs):
        super().__init__(**kwargs)
        self.output_size = output_size
    def call(self, x):
        q = (x.shape[1] - self.output_size) // 2
        return x[:, q : q + self.output_size, q : q + self.output_size]
    def get_config(self):
        return super().get_config() | {"output_size": self.output_size}

class ExtractPatchesPositionLayer(_Layer):
    def __init__(self, N, gridsize, jitter=0.0, **kwargs):
        super().__init__(**kwargs)
        self.N, self.gridsize, self.jitter = N, gridsize, jitter
    def call(self, inputs):
        merged, positions = inputs
        offsets = tf.reshape(tf.transpose(positions, [0, 3, 1, 2]), [-1, 2])
        return equations.extract_views(merged, offsets, (merged.shape[1] - self.N) // 2, self.N)
    def get_config(self):
        return super().get_config() | {"N": self.N, "gridsize": self.gridsize, "jitter": self.jitter}

class PadAndDiffractLayer(_Layer):
    def call(self, x):
        return x, equations.diffract(x, 1)

class FlatToChannelLayer(_Layer):
    def __init__(self, N, gridsize, **kwargs):
        super().__init__(**kwargs)
        self.N, self.gridsize = N, gridsize
    def call(self, x):
        return tf.transpose(tf.reshape(x, [-1, self.gridsize ** 2, self.N, self.N]), [0, 2, 3, 1])
    def get_config(self):
        return super().get_config() | {"N": self.N, "gridsize": self.gridsize}

class SquareLayer(_Layer):
    def call(self, x):
        return tf.square(x)
"""

_MODEL = """
import os
import warnings

import keras
import numpy as np
import tensorflow as tf

from ptycho_tf_bridge import keras_reference as equations

from . import params
from .custom_layers import *
from .custom_layers import _Layer

warnings.filterwarnings("ignore", message="of the package alone")

_lazy_cache = {}
_model_construction_done = False

def _get_log_scale():
    if "log_scale" not in _lazy_cache:
        _lazy_cache["log_scale"] = tf.Variable(np.float32(np.log(params.cfg["intensity_scale"])))
    return _lazy_cache["log_scale"]

def get_resolution_scale_factor(N):
    return 2048 // N

class IntensityScaler(_Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.log_scale = _get_log_scale()
    def call(self, x):
        return x / tf.exp(self.log_scale)

class IntensityScaler_inv(IntensityScaler):
    def call(self, x):
        return tf.exp(self.log_scale) * x

class ProbeIllumination(_Layer):
    def __init__(self, N, **kwargs):
        super().__init__(**kwargs)
        self.N = N
        self.w = tf.Variable(np.asarray(params.cfg["probe"], np.complex64)[None], trainable=False)
    def call(self, x):
        wave = x * tf.convert_to_tensor(self.w)
        sigma = params.cfg["gaussian_smoothing_sigma"]
        if sigma > 0:
            wave = tf.complex(equations.blur(tf.math.real(wave), sigma), equations.blur(tf.math.imag(wave), sigma))
        if params.cfg["probe.mask"]:
            wave *= tf.constant(equations.disk_mask(self.N)[:, :, None], tf.complex64)
        return wave
    def get_config(self):
        return super().get_config() | {"N": self.N}

def create_model_with_gridsize(gridsize: int, N: int, **kwargs):
    before = {key: params.get(key) for key in ("gridsize", "N", "use_xla_translate")}
    try:
        keras.backend.clear_session()
        params.cfg.update({"gridsize": gridsize, "N": N, "use_xla_translate": False, **kwargs})
        return _models(gridsize, N)
    finally:
        params.cfg.update(before)

def _models(gridsize, N):
    np.random.seed(2)
    cfg = params.cfg
    params.get("bigN")
    s, C, Conv = cfg["n_filters_scale"], gridsize ** 2, keras.layers.Conv2D
    heads = C if cfg["object.big"] else 1
    relu = {"padding": "same", "activation": "relu"}
    x = keras.Input((N, N, C), name="input")
    positions = keras.Input((1, 2, C), name="input_positions")
    h = IntensityScaler(name="intensity_scaler")(x)
    encoder = {64: (32, 64, 128), 128: (16, 32, 64, 128), 256: (8, 16, 32, 64, 128)}[N]
    decoder = {64: (64, 32), 128: (128, 64, 32), 256: (256, 128, 64, 32)}[N]
    for width in encoder:
        h = Conv(width * s, 3, **relu)(h)
        h = Conv(width * s, 3, **relu)(h)
        h = keras.layers.MaxPooling2D((2, 2), padding="same")(h)

    def decode(features, name, activation, scale):
        inner, outer = Conv(heads, 3, padding="same"), Conv(heads, 3, padding="same")
        for width in decoder:
            features = Conv(width * s, 3, **relu)(features)
            features = Conv(width * s, 3, **relu)(features)
            features = keras.layers.UpSampling2D((2, 2))(features)
        act = ActivationLayer(activation, scale, name=name)

        def border(source):
            for _ in range(2):
                source = Conv(s * 2048 // N, 3, **relu)(source)
            return outer(keras.layers.UpSampling2D((2, 2))(source))

        if not cfg["pad_object"]:
            return act(border(features))
        centre = keras.layers.ZeroPadding2D(N // 4, name=f"{name}_padded")(act(inner(features[..., :-4])))
        if not cfg["probe.big"]:
            return centre
        shown = keras.ops.silu(border(features[..., -4:]))
        return centre + shown * CenterMaskLayer(N)(shown)

    patches = CombineComplexLayer(name="obj")(
        [decode(h, "amp", cfg["amp_activation"], 1.0), decode(h, "phi", "tanh", np.pi)]
    )
    padding = (gridsize - 1) * cfg["offset"] + cfg["max_position_jitter"]
    if cfg["object.big"]:
        merged = ReassemblePatchesLayer(N + padding, N, gridsize, name="padded_obj_2")([patches, positions])
    else:
        merged = PadReconstructionLayer(padding // 2, name="padded_obj")(patches)
    trimmed = TrimReconstructionLayer(N, name="trimmed_obj")(merged)
    views = ExtractPatchesPositionLayer(N, gridsize, name="padded_objs_with_offsets")([merged, positions])
    wave = ProbeIllumination(N, name="probe_illumination")(views)
    _, flat = PadAndDiffractLayer(name="pred_amplitude")(wave)
    channels = FlatToChannelLayer(N, gridsize, name="pred_diff_channels")(flat)
    amplitude = IntensityScaler_inv(name="intensity_scaler_inv")(channels)
    intensity = SquareLayer(name="pred_intensity")(amplitude)
    autoencoder = keras.Model([x, positions], [trimmed, amplitude, intensity])
    return autoencoder, keras.Model([x, positions], [trimmed])

def _create_models_from_global_config():
    return create_model_with_gridsize(params.get("gridsize"), params.get("N"))

def realspace_loss(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred))

def negloglik(y_true, y_pred):
    return tf.nn.log_poisson_loss(y_true, tf.math.log(y_pred), compute_full_loss=False)

def create_compiled_model(gridsize=None, N=None):
    gridsize = params.get("gridsize") if gridsize is None else gridsize
    N = params.get("N") if N is None else N
    autoencoder, diffraction_to_obj = create_model_with_gridsize(gridsize, N)
    autoencoder.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.001),
        loss=[realspace_loss, "mean_absolute_error", negloglik],
        loss_weights=[params.get(name) for name in ("realspace_weight", "mae_weight", "nll_weight")],
        jit_compile=os.environ.get("USE_XLA_COMPILE", "").lower() in ("1", "true", "yes"),
    )
    return autoencoder, diffraction_to_obj

def train(epochs, trainset, model_instance=None, use_streaming=None):
    raise RuntimeError("nobody asked for training")

def __getattr__(name):
    global _model_construction_done
    if name not in ("autoencoder", "diffraction_to_obj"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _lazy_cache:
        warnings.warn(f"{name} is built with whatever params.cfg holds", DeprecationWarning, stacklevel=2)
        _lazy_cache["autoencoder"], _lazy_cache["diffraction_to_obj"] = create_compiled_model()
        _model_construction_done = True
    return _lazy_cache[name]
"""

Edit = tuple[str, str, str]
"""(file, text in it, what takes its place): makes the package a wrong one."""


def write_package(folder: Path, name: str, *edits: Edit) -> str:
    """Write a package that can be imported from ``folder``; return its name."""
    texts = {
        "__init__.py": "",
        "params.py": _PARAMS,
        "config/__init__.py": "",
        "config/config.py": _CONFIG,
        "custom_layers.py": _LAYERS,
        "model.py": _MODEL,
    }
    for file, old, new in edits:
        assert old in texts[file], f"{old!r} is not in {file}"
        texts[file] = texts[file].replace(old, new)
    for file, text in texts.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return name
