"""Round trips through the real TensorFlow program: its archives to us and back, and its configuration files.

Each row is one network. The program's own training makes an archive (one epoch: the weights need only be its own),
and its own loader and grouping predict with it. Then `ptycho-bridge convert`, `ptycho-torch infer` and `verify` run on
that. The other way, `ptycho-torch train` and `ptycho-bridge export` make an archive, the program's own loader predicts
with it, and our checkpoint predicts the same groups. Rows are kept in a JSON file; those there are not run again.

    python benchmarks/round_trips.py CHECKOUT --scan-64 n64.npz --scan-128 n128.npz -o round_trips

CHECKOUT is a checkout of the program; its package `ptycho` alone is put on the path, since its `ptycho_torch` is a
rival of ours. It runs in processes of its own, with `--python` in an environment that has what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = 16
"""Groups of a training and of a prediction."""

BATCH = 8
"""Groups at once: 64 patches and more in one call would meet REF-01."""


@dataclass(frozen=True)
class Network:
    """One row: fields of the program's ModelConfig beside N and gridsize."""

    N: int
    gridsize: int
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Say what it is."""
        changes = ", ".join(f"{key} {value}" for key, value in self.fields.items())
        return f"N {self.N}, g {self.gridsize}" + (f", {changes}" if changes else "")


NETWORKS = (
    Network(64, 1),
    Network(64, 2),
    Network(64, 2, {"amp_activation": "swish", "object_big": False, "pad_object": False}),
    Network(64, 1, {"amp_activation": "softplus", "probe_big": False}),
    Network(64, 1, {"amp_activation": "relu", "n_filters_scale": 2}),
    Network(64, 2, {"n_filters_scale": 2}),
    Network(128, 1),
    Network(128, 2, {"probe_big": False}),
)


# ------------------------------------------------------------------------------------------------ inside the program


def predict_there(archive: str, scan: str, N: str, gridsize: str, output: str) -> None:
    """Load an archive with the program's own loader, group the scan with its own grouping, predict and stitch."""
    from ptycho import loader, tf_helper  # type: ignore[import-not-found]
    from ptycho.workflows.components import load_data, load_inference_bundle  # type: ignore[import-not-found]

    model, config = load_inference_bundle(Path(archive).parent)
    raw = load_data(scan)
    groups = raw.generate_grouped_data(int(N), K=4, nsamples=GROUPS, seed=1, gridsize=int(gridsize))
    container = loader.load(lambda: groups, raw.probeGuess, which=None, create_split=False)
    X, local = np.asarray(container.X, np.float32), np.asarray(container.local_offsets, np.float32)
    objects = model.predict([X * config["intensity_scale"], local], batch_size=BATCH, verbose=0)
    stitched = tf_helper.reassemble_position(objects, container.global_offsets, M=20)
    np.savez(
        output,
        X=X,
        offsets=local,
        object=objects,
        nn_indices=groups["nn_indices"],
        coords_offsets=groups["coords_offsets"],
        coords_relative=groups["coords_relative"],
        stitched=np.asarray(stitched).reshape(np.asarray(stitched).shape[-3:]),
        M=np.int64(20),
    )


def settings_there(*paths: str) -> None:
    """Read configuration files with the program's own reader; print its dataclasses as JSON, one line a file."""
    import dataclasses

    from ptycho.workflows.components import setup_configuration

    for path in paths:
        config = setup_configuration(argparse.Namespace(train_data_file="scan.npz"), path)
        print("CONFIG", json.dumps(dataclasses.asdict(config), default=str))


# --------------------------------------------------------------------------------------------------------- our side


@dataclass(frozen=True)
class Lab:
    """Where everything is."""

    checkout: Path
    python: str
    output: Path
    scans: dict[int, Path]

    def there(self, *arguments: object) -> str:
        """Run Python with the program's package on the path, and none of its others."""
        packages = self.output / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        if not (packages / "ptycho").exists():
            (packages / "ptycho").symlink_to(self.checkout / "ptycho")
        return run([self.python, *arguments], self.output, {"PYTHONPATH": str(packages)})

    def side(self, action: str, *arguments: object) -> str:
        """Run one of the functions above there."""
        return self.there(Path(__file__).resolve(), action, *arguments)


def run(command: list[Any], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command; return what it prints, and raise with its last lines if it fails."""
    words = [str(each) for each in command]
    found = subprocess.run(
        words, capture_output=True, text=True, cwd=folder, env=os.environ | (environment or {}), check=False
    )
    if found.returncode:
        raise RuntimeError(f"{shlex.join(words)}\n{found.stdout[-1500:]}\n{found.stderr[-1500:]}")
    return found.stdout


def ours(*arguments: object) -> list[Any]:
    """Return a command of ours."""
    return [sys.executable, "-m", *arguments]


def row(lab: Lab, network: Network) -> dict[str, Any]:
    """Make one row; what was made stays in a folder of its own."""
    folder = lab.output / re.sub(r"\W+", "_", network.name)
    folder.mkdir(parents=True, exist_ok=True)
    scan, archive = lab.scans[network.N], folder / "theirs" / "wts.h5.zip"
    yaml, predictions = folder / "theirs.yaml", folder / "theirs.npz"
    model = {"N": network.N, "gridsize": network.gridsize, "probe_scale": 4.0} | network.fields
    yaml.write_text(json.dumps({"model": model}))
    shown: dict[str, Any] = {"network": network.name}

    def timed(name: str, action: Any) -> Any:
        started = time.perf_counter()
        found = action()
        shown[f"{name}_s"] = round(time.perf_counter() - started, 1)
        print(f"{network.name}: {name} {shown[f'{name}_s']} s", file=sys.stderr, flush=True)
        return found

    training = [
        *(lab.checkout / "scripts/training/train.py", "--config", yaml, "--train_data_file", scan),
        *("--output_dir", archive.parent, "--n_groups", GROUPS, "--nepochs", 1, "--batch_size", BATCH),
    ]
    if not archive.exists():
        timed("training there", lambda: lab.there(*training))
        predictions.unlink(missing_ok=True)
    where = (scan, network.N, network.gridsize)
    if not predictions.exists():
        timed("prediction there", lambda: lab.side("predict", archive, *where, predictions))
    converted = folder / "converted"
    timed("convert", lambda: run(ours("ptycho_tf_bridge", "convert", archive, "-o", converted, "--overwrite"), folder))
    infer = ours("ptycho_torch", "infer", converted, scan, "-o", folder / "objects", "--overwrite", "--weighting")
    said = timed("infer", lambda: run([*infer, "uniform"], folder))
    shown["object"] = re.search(r"object of (.*)", said).group(1)  # type: ignore[union-attr]
    verify = ours("conformance", "verify", archive, "--checkpoint", converted, "--scan", scan)
    certificate = folder / "certificate"
    timed("verify", lambda: run([*verify, "--predictions", predictions, "-o", certificate], folder))
    content = json.loads((certificate / "certificate.json").read_text())
    shown["sentence"] = content["verdict"]
    shown["recorded"] = {each["quantity"]: each["converted"]["errors"]["e"] for each in content["recorded"]}

    back, exported = folder / "back", folder / "exported" / "wts.h5.zip"
    train = ours("ptycho_torch", "train", scan, "-o", back, "--config", converted / "settings.yaml", "--overwrite")
    few = ["--max-epochs", 1, "--n-groups", GROUPS, "--batch-size", BATCH, "--no-tracking"]
    timed("training here", lambda: run([*train, *few], folder))
    exported.parent.mkdir(exist_ok=True)
    timed("export", lambda: run(ours("ptycho_tf_bridge", "export", back, "-o", exported, "--overwrite"), folder))
    timed("back there", lambda: lab.side("predict", exported, *where, folder / "back.npz"))
    shown["exported"] = exported_error(back, folder / "back.npz")
    return shown


def exported_error(checkpoint: Path, predictions: Path) -> float:
    """Return how far objects that the program predicted lie from those of our checkpoint, relative in the norm."""
    import torch

    from ptycho_torch.train import PtychoPINN

    module = PtychoPINN.from_checkpoint(checkpoint / "checkpoints" / "last.ckpt")
    with np.load(predictions) as given, torch.inference_mode():
        images, offsets = (torch.from_numpy(np.moveaxis(given[key], -1, 1).copy()) for key in ("X", "offsets"))
        objects = np.moveaxis(module.forward_predict(images, offsets).numpy(), 1, -1)
        return float(np.linalg.norm(objects - given["object"]) / np.linalg.norm(given["object"]))


def configurations(lab: Lab, files: list[Path]) -> list[dict[str, Any]]:
    """Translate configuration files to us and back; say which fields the program reads otherwise afterwards."""
    folder, found = lab.output / "configurations", []
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(files):
        here, back = folder / f"{number}_here.yaml", folder / f"{number}_back.yaml"
        bridge = ours("ptycho_tf_bridge", "config")
        run([*bridge, path, "--to", "torch", "-o", here, "--overwrite"], folder)
        run([*bridge, here, "--to", "tf-yaml", "-o", back, "--overwrite"], folder)
        lines = [line for line in lab.side("settings", path, back).splitlines() if line.startswith("CONFIG ")]
        before, after = (flat(json.loads(line.removeprefix("CONFIG "))) for line in lines)
        changed = {name: [value, after[name]] for name, value in before.items() if value != after[name]}
        found.append({"file": name_of(path), "fields": len(before), "changed": changed})
    return found


def name_of(path: Path) -> str:
    """Return the file and its folder."""
    return f"{path.parent.name}/{path.name}"


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the model beside the others, numbers that are written as text as numbers."""
    whole = {**values.pop("model"), **values}
    return {
        key: float(value) if re.fullmatch(r"[\d.]+e[+-]?\d+", str(value)) else value for key, value in whole.items()
    }


def table(content: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| network | objects | stitched | verdicts | infer | exported |",
        "|---|---|---|---|---|---|",
    ]
    for each in content["rows"]:
        verdict = re.search(r"all (\d+) verdicts.*at most (\d+%)", each["sentence"])
        held = f"{verdict.group(1)} hold, ≤ {verdict.group(2)}" if verdict else each["sentence"]
        recorded = each["recorded"]
        lines.append(
            f"| {each['network']} | {recorded['object']:.1e} | {recorded['stitched']:.1e} | {held} | "
            f"{each['object']} | {each['exported']:.1e} |"
        )
    lines += ["", "| file | fields | changed |", "|---|---|---|"]
    for each in content["configurations"]:
        changed = "; ".join(f"{name}: {a} → {b}" for name, (a, b) in each["changed"].items()) or "none"
        lines.append(f"| {each['file']} | {each['fields']} | {changed} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--scan-64", type=Path, required=True)
    parser.add_argument("--scan-128", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter for the program (default: this one)")
    parser.add_argument("-o", "--output", type=Path, default=Path("round_trips"))
    parser.add_argument("--rows", type=int, default=len(NETWORKS), help="make no more than the first rows")
    options = parser.parse_args()
    lab = Lab(
        options.checkout.resolve(),
        options.python,
        options.output.resolve(),
        {64: options.scan_64.resolve(), 128: options.scan_128.resolve()},
    )
    lab.output.mkdir(parents=True, exist_ok=True)
    kept = lab.output / "round_trips.json"
    content = json.loads(kept.read_text()) if kept.exists() else {"rows": [], "configurations": []}
    for network in NETWORKS[: options.rows]:
        if network.name not in [each["network"] for each in content["rows"]]:
            content["rows"].append(row(lab, network))
            kept.write_text(json.dumps(content, indent=1))
    files = [*sorted((lab.checkout / "configs").glob("*.yaml")), *sorted(lab.output.glob("*/theirs.yaml"))]
    there = [each["file"] for each in content["configurations"]]
    content["configurations"] += configurations(lab, [path for path in files if name_of(path) not in there])
    kept.write_text(json.dumps(content, indent=1))
    print(table(content))


if __name__ == "__main__":
    sides = {"predict": predict_there, "settings": settings_there}
    if len(sys.argv) > 1 and sys.argv[1] in sides:
        sides[sys.argv[1]](*sys.argv[2:])
    else:
        main()
