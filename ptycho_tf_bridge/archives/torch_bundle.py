"""Bundles of the reference's own PyTorch side, which have the name and the outside of its archives.

They are recognised, looked into, and refused: their network is another architecture. Nothing of them is unpickled; the
opcodes of a state dict name its parameters, and that is all there is to say.
"""

from __future__ import annotations

import pickletools

from ptycho_tf_bridge.archives.members import Members, open_members_of
from ptycho_tf_bridge.errors import ArchiveError

MODEL_FILE = "model.pth"

_PICKLE_BYTES = 8 * 2**20
_MAX_OPCODES = 500_000


def is_torch_bundle(members: Members) -> bool:
    """Whether an archive holds a model of PyTorch."""
    return any(name.rpartition("/")[2] == MODEL_FILE for name in members.names)


def torch_bundle_error(members: Members) -> ArchiveError:
    """Return why a bundle is not converted, with what it holds.

    Raises:
        ArchiveError: it is damaged.
    """
    models = {name: _parameters(members, name) for name in members.names if name.rpartition("/")[2] == MODEL_FILE}
    name, parameters = max(models.items(), key=lambda each: len(each[1]))
    example = f", {parameters[0]!r} the first" if parameters else ""
    return ArchiveError(
        f"{members.where}: a bundle of the reference's PyTorch side; {name} holds {len(parameters)} parameters"
        f"{example}. Its network is another architecture than the TensorFlow reference, with other activations, canvas "
        "and decoders, so its weights have no place here. Convert the TensorFlow archive of the same training, or "
        "train anew with `ptycho-torch train`."
    )


def _parameters(members: Members, name: str) -> list[str]:
    """Return the names of the parameters of a state dict, as its pickle spells them."""
    with open_members_of(members.read(name), members.place(name)) as file:
        pickles = [member for member in file.names if member.endswith("/data.pkl") or member == "data.pkl"]
        if len(pickles) != 1:
            raise ArchiveError(f"{file.where}: {len(pickles)} members data.pkl; expected a file of torch.save.")
        content = file.read(pickles[0], _PICKLE_BYTES)
        where = file.place(pickles[0])
    parameters: list[str] = []
    text = ""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > _MAX_OPCODES:
                raise ArchiveError(f"{where}: more than {_MAX_OPCODES} pickle opcodes.")
            if isinstance(argument, str) and "." in argument and " " not in argument and len(argument) < 200:
                text = argument
            elif opcode.name == "BINPERSID" and text and text not in parameters[-1:]:
                # The storage of a tensor follows its name.
                parameters.append(text)
    except (ValueError, OverflowError, UnicodeDecodeError) as err:
        if isinstance(err, ArchiveError):
            raise
        raise ArchiveError(f"{where}: a damaged pickle ({err}).") from err
    return parameters
