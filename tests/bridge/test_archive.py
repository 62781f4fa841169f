"""Archives of every era are read by what they contain; parts that contradict each other are refused by name."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from conformance.checks.archive_files import variables_of, zipped
from conformance.verify.verification import verify
from ptycho_tf_bridge import backend
from ptycho_tf_bridge.archives.archive import Archive, read_archive
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.migrate import convert
from ptycho_tf_bridge.weights import to_torch
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.training.checkpoint import read_checkpoint
from tests.support.archives.reference_archives import (
    Graph,
    archive_members,
    draw_probe,
    draw_weights,
    keras_file,
    run_parameters,
    savedmodel_archive,
    unzipped,
    write_reference_archive,
)

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.5)
SHARED_HEAD = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.5, shared_amplitude_head=True)

Members = dict[str, bytes]


def members(settings: NetworkSettings = SETTINGS, *, scale: float | None = None, **parameters: Any) -> Members:
    """One archive of the reference, to be damaged; ``scale`` stands in ``model.h5``."""
    saved = run_parameters(settings, **{"probe": draw_probe(settings.N)[..., None]} | parameters)
    model = keras_file(Graph(settings), draw_weights(settings))
    return archive_members({"diffraction_to_obj": model}, saved, scale)


def savedmodel(
    settings: NetworkSettings, probe: np.ndarray | None, *, parameters: Mapping[str, Any] | None = None
) -> Members:
    """The archive of the years before Keras 3, with the checkpoint keys that it has."""
    variables = variables_of(settings, draw_weights(settings), probe)
    return savedmodel_archive("autoencoder", variables, run_parameters(settings) if parameters is None else parameters)


def written(path: Path, content: Members) -> Path:
    path.write_bytes(zipped(content))
    return path


def same_weights(archive: Archive, weights: Mapping[str, np.ndarray]) -> bool:
    return list(archive.weights) == list(weights) and all(
        np.array_equal(array, weights[name]) and array.dtype == np.float32 for name, array in archive.weights.items()
    )


# ---------------------------------------------------------------------------------------------------- what is read


def test_an_archive_of_today_is_told_by_its_era(tmp_path: Path) -> None:
    archive = read_archive(write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS))
    assert archive.notes == ()
    assert (
        archive.era == "Keras 3 (an amplitude channel for each pattern, since February 2026), saved 2026-03-01@12:00:00"
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("first_number", [0, 44])
@pytest.mark.parametrize(
    "settings",
    [
        SHARED_HEAD,
        NetworkSettings(N=64, gridsize=3, n_filters_scale=1, pad_object=False, amp_activation="swish"),
        NetworkSettings(N=128, gridsize=1, n_filters_scale=1, probe_big=False, gaussian_smoothing_sigma=0.5),
        NetworkSettings(N=128, gridsize=2, n_filters_scale=2, object_big=False, probe_mask=True, offset=6),
    ],
    ids=["shared", "unpadded", "centre", "one patch"],
)
def test_names_and_numbers_of_layers_play_no_part(
    settings: NetworkSettings, first_number: int, named: bool, tmp_path: Path
) -> None:
    path = write_reference_archive(tmp_path / "any.name", settings, first_number=first_number, named=named)
    archive = read_archive(path)
    assert archive.network == settings
    assert same_weights(archive, draw_weights(settings))


def test_an_unpacked_archive_is_the_same(tmp_path: Path) -> None:
    path = write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS)
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "unpacked")
    archive = read_archive(tmp_path / "unpacked")
    assert archive.network == SETTINGS
    assert same_weights(archive, draw_weights(SETTINGS))


def test_the_folder_of_a_training_stands_for_its_archive(tmp_path: Path) -> None:
    path = write_reference_archive(tmp_path / "wts.h5.zip", SETTINGS)
    (tmp_path / "prediction.npz").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(path)
    archive = read_archive(tmp_path)
    assert (archive.path, archive.digest) == (path, read_archive(path).digest)


def test_of_several_archives_in_a_folder_one_has_to_be_named(tmp_path: Path) -> None:
    one = write_reference_archive(tmp_path / "one.zip", SETTINGS)
    assert read_archive(tmp_path).path == one
    write_reference_archive(tmp_path / "two.zip", SETTINGS)
    with pytest.raises(ArchiveError, match=r"holds one\.zip, two\.zip; give one of them"):
        read_archive(tmp_path)


def test_a_keras_file_alone_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(keras_file(Graph(SETTINGS), draw_weights(SETTINGS)))
    archive = read_archive(path)
    assert archive.layout == "bare_keras"
    assert archive.missing == ("probe", "intensity_scale", "probe_mask", "gaussian_smoothing_sigma")
    assert archive.network.canvas_px == SETTINGS.canvas_px
    assert same_weights(archive, draw_weights(SETTINGS))


def test_saved_parameters_beside_a_keras_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(keras_file(Graph(SETTINGS), draw_weights(SETTINGS)))
    saved = run_parameters(SETTINGS, probe=draw_probe(64)[..., None])
    (tmp_path / "params.dill").write_bytes(pickle.dumps(saved, 4))
    archive = read_archive(tmp_path / "model.keras")
    assert archive.missing == ()
    assert archive.network == SETTINGS
    assert any("beside the model" in note for note in archive.notes)


def test_an_archive_of_2025_has_one_amplitude_channel(tmp_path: Path) -> None:
    archive = read_archive(write_reference_archive(tmp_path / "wts.h5.zip", SHARED_HEAD))
    assert archive.network.shared_amplitude_head
    assert "July 2025 to February 2026" in archive.era
    assert any("refuses such weights" in note for note in archive.notes)


@pytest.mark.parametrize("layout", ["savedmodel", "savedmodel_folder"])
def test_the_checkpoint_of_a_savedmodel_is_read(layout: str, tmp_path: Path) -> None:
    content = savedmodel(SHARED_HEAD, draw_probe(64, seed=5))
    path = written(tmp_path / "wts.h5.zip", content)
    if layout == "savedmodel_folder":
        with zipfile.ZipFile(path) as file:
            file.extractall(tmp_path)
        path = tmp_path / "autoencoder"
    archive = read_archive(path)
    assert (archive.layout, archive.network) == (layout, SHARED_HEAD)
    assert archive.probe is not None
    assert np.array_equal(archive.probe, draw_probe(64, seed=5))
    assert "variables" in archive.probe_source
    assert same_weights(archive, draw_weights(SHARED_HEAD))
    assert any("until 2025-07-18" in note for note in archive.notes)


def test_the_trained_probe_of_a_checkpoint_counts_and_the_difference_is_noted(tmp_path: Path) -> None:
    saved = run_parameters(SHARED_HEAD, probe=draw_probe(64, seed=1)[..., None])
    path = written(tmp_path / "wts.h5.zip", savedmodel(SHARED_HEAD, draw_probe(64, seed=2), parameters=saved))
    archive = read_archive(path)
    assert archive.probe is not None
    assert np.array_equal(archive.probe, draw_probe(64, seed=2))
    assert any("probe of the checkpoint differs" in note for note in archive.notes)


def test_an_archive_that_tensorflow_writes_converts_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow writes the checkpoint here")
    from ptycho_tf_bridge.backend import tensorflow

    tf = tensorflow()
    variables: dict[str, dict[str, np.ndarray]] = {}
    for name, array in variables_of(SHARED_HEAD, draw_weights(SHARED_HEAD), draw_probe(64)).items():
        layer, attribute = name.split("/")[:2]
        if layer != "keras_api":
            variables.setdefault(layer, {})[attribute] = array
    layers = {}
    for layer, arrays in variables.items():
        layers[layer] = tf.Module()
        for attribute, array in arrays.items():
            setattr(layers[layer], attribute, tf.Variable(array))
    folder = tmp_path / "autoencoder" / "variables"
    folder.mkdir(parents=True)
    tf.train.Checkpoint(**layers).write(str(folder / "variables"))
    (tmp_path / "autoencoder" / "params.dill").write_bytes(pickle.dumps(run_parameters(SHARED_HEAD), 4))
    archive = read_archive(tmp_path / "autoencoder")
    assert archive.network == SHARED_HEAD
    assert archive.probe is not None
    assert np.array_equal(archive.probe, draw_probe(64))
    assert same_weights(archive, draw_weights(SHARED_HEAD))
    converted = convert(archive, tmp_path / "out").checkpoint
    content = read_checkpoint(converted)
    assert content.network == SHARED_HEAD
    for name, array in to_torch(draw_weights(SHARED_HEAD), SHARED_HEAD).items():
        assert np.array_equal(content.weights[name].numpy(), array)
    # Judged against the oracle: live Keras would take a minute and say the same.
    monkeypatch.setattr(backend, "is_available", lambda: False)
    found = verify(archive, converted)
    assert found.passed, found.sentence


def test_two_archives_do_not_know_of_each_other(tmp_path: Path) -> None:
    scales = {"a": 5.0, "b": 1119.79}
    for name, scale in scales.items():
        settings = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=scale)
        weights = draw_weights(settings, seed=len(name) + int(scale))
        write_reference_archive(tmp_path / name, settings, weights, probe=draw_probe(64, seed=int(scale)))
    for order in itertools.permutations(scales):
        found = {name: read_archive(tmp_path / name) for name in order}
        assert {name: archive.intensity_scale for name, archive in found.items()} == scales
        assert {name: archive.network.intensity_scale for name, archive in found.items()} == scales


def test_the_real_archive_is_read(shared: Path) -> None:
    archive = read_archive(shared / "archives" / "star_g2" / "wts.h5.zip")
    recorded = np.load(shared / "archives" / "star_g2" / "prediction.npz")
    assert archive.intensity_scale == float(recorded["intensity_scale"])
    assert (archive.network.N, archive.network.gridsize, archive.network.canvas_px) == (64, 2, 78)
    assert (archive.missing, archive.notes) == ((), ())


def test_the_real_archive_of_the_savedmodel_era_is_read(shared: Path) -> None:
    archive = read_archive(shared / "archives" / "savedmodel_era" / "wts.h5.zip")
    assert (archive.layout, archive.probe_source) == ("savedmodel", "autoencoder/variables")
    assert archive.network.shared_amplitude_head
    assert archive.missing == ()


# ------------------------------------------------------------------------------------------------- missing, disagreeing


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    content = members()
    saved = run_parameters(SETTINGS)
    del saved["intensity_scale"], saved["gaussian_smoothing_sigma"]
    content["diffraction_to_obj/params.dill"] = pickle.dumps(saved, 4)
    archive = read_archive(written(tmp_path / "a", content))
    assert archive.missing == ("probe", "intensity_scale", "gaussian_smoothing_sigma")
    assert (archive.probe, archive.probe_source, archive.intensity_scale) == (None, "", None)


def test_scales_that_disagree_are_noted(tmp_path: Path) -> None:
    archive = read_archive(written(tmp_path / "a", members(scale=20.5, intensity_scale=21.0)))
    assert archive.intensity_scale == 21.0
    assert any("21.0" in note and "20.5" in note for note in archive.notes)
    # The same number in float32 is no disagreement.
    assert read_archive(written(tmp_path / "b", members(scale=20.5, intensity_scale=20.5000001))).notes == ()


def test_a_probe_of_another_size_is_no_probe(tmp_path: Path) -> None:
    archive = read_archive(written(tmp_path / "a", members(probe=draw_probe(128)[..., None])))
    assert archive.missing == ("probe",)
    assert any("default disk" in note for note in archive.notes)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"gridsize": 1}, "gridsize 1, but 2 in the model"),
        ({"N": 128}, "N 128, but 64"),
        ({"object.big": False}, "object.big False, but True"),
        ({"probe.big": False}, "probe.big False, but True"),
        ({"pad_object": False}, "pad_object False, but True"),
        ({"n_filters_scale": 2}, "n_filters_scale 2, but 1"),
        ({"amp_activation": "swish"}, "amp_activation 'swish', but 'sigmoid'"),
        ({"offset": 6}, "a canvas of 80 pixels, the model has 78"),
        ({"gaussian_smoothing_sigma": "wide"}, "no network has the saved parameters"),
        ({"probe.mask": 3}, "no network has the saved parameters"),
        ({"max_position_jitter": 11}, "REF-03"),
        ({"intensity_scale": 0.0}, "expected a number above 0"),
        ({"intensity_scale": "much"}, "expected a number above 0"),
        ({"intensity_scale": True}, "expected a number above 0"),
        ({"intensity_scale": float("nan")}, "expected a number above 0"),
        ({"probe": "round"}, "probe is str"),
        ({"probe": np.ones((64, 3))}, "expected a complex probe"),
        ({"probe": np.full((64, 64, 1), np.nan)}, "zero everywhere or not finite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_parameters_of_another_model_are_refused(parameters: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=words):
        read_archive(written(tmp_path / "a", members(**parameters)))


def test_models_with_different_weights_need_a_choice(tmp_path: Path) -> None:
    first, second = (draw_weights(SETTINGS, seed) for seed in (1, 2))
    models = {
        "autoencoder": keras_file(Graph(SETTINGS), first),
        "diffraction_to_obj": keras_file(Graph(SETTINGS), second),
    }
    path = written(tmp_path / "a", archive_members(models, run_parameters(SETTINGS)))
    with pytest.raises(ArchiveError, match="different weights; say which one to take"):
        read_archive(path)
    assert same_weights(read_archive(path, model="autoencoder"), first)
    assert same_weights(read_archive(path, model="diffraction_to_obj"), second)
    with pytest.raises(ArchiveError, match="no model 'other'"):
        read_archive(path, model="other")


# --------------------------------------------------------------------------------------------------------- refused


def edited(edit: Callable[[h5py.File], None]) -> Callable[[Members], None]:
    def apply(content: Members) -> None:
        model = keras_file(Graph(SETTINGS), draw_weights(SETTINGS), edit=edit)
        content["diffraction_to_obj/model.keras"] = model

    return apply


def replace_array(root: h5py.File, path: str, array: np.ndarray) -> None:
    del root[path]
    root[path] = array


def swap_groups(root: h5py.File) -> None:
    """Exchange the layers of amplitude and phase, which have the same shapes."""
    root.move("layers/conv2d_6", "layers/other")
    root.move("layers/conv2d_7", "layers/conv2d_6")
    root.move("layers/other", "layers/conv2d_7")


def without(name: str) -> Callable[[Members], None]:
    def apply(content: Members) -> None:
        del content[name]

    return apply


def replaced(name: str, new: bytes) -> Callable[[Members], None]:
    def apply(content: Members) -> None:
        content[name] = new

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edited(swap_groups), "is said to be layer"),
        (edited(lambda root: replace_array(root, "layers/conv2d/vars/0", np.ones((3, 3, 4, 32)))), "expected float32"),
        (edited(lambda root: replace_array(root, "layers/conv2d/vars/1", np.ones(31, np.float32))), "expected float32"),
        (
            edited(lambda root: replace_array(root, "layers/conv2d/vars/1", np.full(32, np.nan, np.float32))),
            "not finite",
        ),
        (
            edited(lambda root: replace_array(root, "layers/conv2d_3/vars/0", np.ones((3, 3, 64, 63), np.float32))),
            "no network of the reference",
        ),
        (edited(lambda root: root.pop("layers/conv2d_9")), "no dataset"),
        (edited(lambda root: root.create_dataset("layers/dense/vars/0", data=np.ones(3))), "belongs to no convolution"),
        (without("diffraction_to_obj/model.keras"), "no model of the reference"),
        (without("diffraction_to_obj/params.dill"), "no params.dill"),
        (replaced("diffraction_to_obj/params.dill", pickle.dumps([1], 4)), "list in place of a dictionary"),
        (replaced("diffraction_to_obj/params.dill", pickle.dumps({3: 1}, 4)), "in place of a dictionary"),
        (replaced("diffraction_to_obj/params.dill", b"cos\nsystem\n(S'x'\ntR."), "params.dill"),
        (replaced("manifest.dill", pickle.dumps({"models": ["autoencoder"]}, 4)), "names the model 'autoencoder'"),
        (replaced("manifest.dill", pickle.dumps("no", 4)), "no list of models"),
        (replaced("diffraction_to_obj/model.keras", b"no zip"), "model.keras"),
        (replaced("diffraction_to_obj/model.h5", b"no HDF5"), "model.h5"),
    ],
)
def test_a_damaged_archive_is_refused(damage: Callable[[Members], None], words: str, tmp_path: Path) -> None:
    content = members()
    damage(content)
    with pytest.raises(ArchiveError, match=words) as caught:
        read_archive(written(tmp_path / "a.zip", content))
    assert str(tmp_path / "a.zip") in str(caught.value)


def test_a_graph_without_the_border_mask_is_refused(tmp_path: Path) -> None:
    model = keras_file(Graph(SETTINGS, masked=False), draw_weights(SETTINGS))
    path = written(tmp_path / "a", archive_members({"autoencoder": model}, run_parameters(SETTINGS)))
    with pytest.raises(ArchiveError, match="before 2024-08-20"):
        read_archive(path)


def test_a_savedmodel_of_before_the_border_mask_is_refused_unless_it_has_no_border(tmp_path: Path) -> None:
    saved = run_parameters(SHARED_HEAD)
    del saved["pad_object"]
    with pytest.raises(ArchiveError, match="before 2024-08-20"):
        read_archive(written(tmp_path / "a", savedmodel(SHARED_HEAD, None, parameters=saved)))
    centre = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, probe_big=False, shared_amplitude_head=True)
    saved = run_parameters(centre)
    del saved["pad_object"]
    assert read_archive(written(tmp_path / "b", savedmodel(centre, None, parameters=saved))).network == centre


def test_a_bundle_of_pytorch_is_recognised_and_refused(tmp_path: Path) -> None:
    import torch

    file = io.BytesIO()
    torch.save({"model.encoder.weight": torch.zeros(3), "model.encoder.bias": torch.zeros(3)}, file)
    content = {
        "manifest.dill": pickle.dumps({"models": ["diffraction_to_obj"], "version": "2.0-pytorch"}, 4),
        "diffraction_to_obj/model.pth": file.getvalue(),
        "diffraction_to_obj/params.dill": pickle.dumps(run_parameters(SETTINGS), 4),
    }
    with pytest.raises(ArchiveError, match=r"PyTorch side.*2 parameters, 'model\.encoder\.weight' the first"):
        read_archive(written(tmp_path / "wts.h5.zip", content))
    content["diffraction_to_obj/model.pth"] = b"no zip"
    with pytest.raises(ArchiveError, match=r"model\.pth"):
        read_archive(written(tmp_path / "wts.h5.zip", content))


def test_a_checkpoint_of_this_project_is_told_from_an_archive(tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "last.ckpt")
    with pytest.raises(ArchiveError, match=r"last\.ckpt: no archive .* a file of torch\.save.*ptycho-torch infer"):
        read_archive(tmp_path / "last.ckpt")


def written_by_keras_as_hdf5(kind: str, path: Path) -> None:
    """A file with the names that Keras 2 (.h5) and Keras 3 (.weights.h5) give what they write."""
    with h5py.File(path, "w") as file:
        if kind == "model":
            file.attrs["model_config"] = "{}"
            file.create_group("model_weights").attrs["layer_names"] = [b"conv2d"]
        elif kind == "old weights":
            file.attrs["layer_names"] = [b"conv2d"]
        elif kind == "weights":
            file["layers/conv2d/vars/0"] = np.zeros(3)
        else:
            file["entry/data"] = np.zeros(3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("model", r"a model that Keras saved as HDF5.*save it as model\.keras"),
        ("old weights", r"weights that Keras saved without their model"),
        ("weights", r"weights that Keras saved without their model"),
        ("scan", r"an HDF5 file that Keras did not write"),
    ],
)
def test_a_bare_hdf5_file_is_called_what_it_is(kind: str, words: str, tmp_path: Path) -> None:
    written_by_keras_as_hdf5(kind, tmp_path / "wts.h5")
    with pytest.raises(ArchiveError, match=rf"wts\.h5: {words}.*wts\.h5\.zip of a training"):
        read_archive(tmp_path / "wts.h5")


@pytest.mark.parametrize("as_object", [True, False])
def test_a_mixed_precision_policy_is_noted(as_object: bool, tmp_path: Path) -> None:
    """Keras 3.5 writes an object, later ones a name where there is no more to say."""
    content = unzipped(keras_file(Graph(SETTINGS), draw_weights(SETTINGS)))
    config = json.loads(content["config.json"])
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Conv2D":
            layer["config"]["dtype"] = policy if as_object else "mixed_float16"
    path = written(tmp_path / "model.keras", content | {"config.json": json.dumps(config).encode()})
    archive = read_archive(path)
    (note,) = (note for note in archive.notes if "mixed_float16" in note)
    assert "float32 here" in note
    assert same_weights(archive, draw_weights(SETTINGS))


def test_code_in_an_archive_is_never_opened(tmp_path: Path) -> None:
    content = members()
    assert b"system" in content["diffraction_to_obj/custom_objects.dill"]
    assert read_archive(written(tmp_path / "a", content)).network == SETTINGS


@pytest.mark.parametrize("name", ["nothing.zip", "empty"])
def test_what_is_no_archive_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError, match=name):
        read_archive(tmp_path / name)
