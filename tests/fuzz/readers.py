"""Every reader of files from anywhere, as a function of bytes: what the corpus and the fuzzer give files to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from conformance.provenance.json_files import read_json
from ptycho_tf_bridge.archives.archive import read_archive
from ptycho_tf_bridge.archives.hdf5 import read_hdf5
from ptycho_tf_bridge.archives.keras_graph import find_roles, read_graph
from ptycho_tf_bridge.archives.members import open_members_of
from ptycho_tf_bridge.archives.tf_checkpoint import read_tf_checkpoint
from ptycho_tf_bridge.archives.unpickle import read_pickle
from ptycho_torch.commands.settings_options import read_config
from ptycho_torch.files.hdf5_files import open_hdf5
from ptycho_torch.files.npz import NpzFile
from ptycho_torch.training.checkpoint_file import read_content
from tests.support.archives.zip_files import archive, stored

Reader = Callable[[bytes, Path], object]
LENGTH_BYTES = 4
LARGEST_REPORT_BYTES = 64 * 2**20


def read_members(content: bytes, folder: Path) -> None:
    """Read a ZIP archive: its directory and all members."""
    with open_members_of(content, "archive.zip") as members:
        for name in members.names:
            members.read(name)


def read_npz(content: bytes, folder: Path) -> None:
    """Read an NPZ file: all members."""
    file = NpzFile(written(folder / "scan.npz", content))
    for key in file.keys:
        file.read(key)


def read_npy(content: bytes, folder: Path) -> None:
    """Read an NPY file, as the only member of an archive that is as it should be."""
    read_npz(archive([stored("array", content)]), folder)


def read_scan(content: bytes, folder: Path) -> None:
    """Read an HDF5 scan: all that it holds or links to."""
    with open_hdf5(written(folder / "scan.cxi", content)) as tree:
        for broken in tree.broken.values():
            raise broken
        for dataset in tree.datasets.values():
            tree.check(dataset)
            if dataset.dtype is not None:
                tree.read(dataset)


def read_checkpoint_parts(content: bytes, folder: Path) -> None:
    """Read a checkpoint of TensorFlow: the length of its index in four bytes, the index, the data."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    index, data = content[LENGTH_BYTES:][:length], content[LENGTH_BYTES:][length:]
    read_tf_checkpoint(index, data, where="variables.index")


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "archive": lambda content, folder: read_archive(written(folder / "wts.h5.zip", content)),
        "zip": read_members,
        "npz": read_npz,
        "npy": read_npy,
        "pickle": lambda content, folder: read_pickle(content, where="params.dill"),
        "graph": lambda content, folder: find_roles(read_graph(content, "config.json")),
        "keras_hdf5": lambda content, folder: read_hdf5(content, where="model.weights.h5"),
        "scan_hdf5": read_scan,
        "tf_checkpoint": read_checkpoint_parts,
        "checkpoint": lambda content, folder: read_content(written(folder / "last.ckpt", content)),
        "settings": lambda content, folder: read_config(written(folder / "settings.yaml", content)),
        "report": lambda content, folder: read_json(
            written(folder / "report.json", content), "report.json", largest_bytes=LARGEST_REPORT_BYTES
        ),
    }
)


def written(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content)
    return path
