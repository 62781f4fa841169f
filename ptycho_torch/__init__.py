"""PtychoPINN in PyTorch: from scanning coherent diffraction data to complex object images.

Nothing is imported here, so that ``import ptycho_torch`` costs nothing; import what you use, for
example ``from ptycho_torch.model import PtychoNet``.

<doc-ref type="guide">docs/architecture.md</doc-ref>
"""
