"""The public modules: package → modules that programs may import. The site documents these, in this order."""

PUBLIC = {
    "ptycho_torch": (
        "config_params",
        "dset_loader_pt_mmap",
        "model",
        "helper",
        "losses",
        "optim",
        "train",
        "training.data_module",
        "training.lightning_module",
        "inference",
        "evaluate",
        "commands.settings_options",
        "files.folders",
        "errors",
        "api.base_api",
    ),
    "ptycho_tf_bridge": ("config", "archives.archive", "export"),
    "conformance": ("judge.agreement", "judge.truth", "cases.case", "recordings.bundle"),
}
