"""A row of results.json for tests of what is made of rows."""

from evidence.experiments.storage.records import Row


def a_row(**changes):
    numbers = ("num_epochs", "num_parameters", "num_model_parameters", "num_guide_parameters")
    texts = ("guide", "objective", "folder", "data_sha256", "test_sha256", "weights_sha256")
    values = {
        **dict.fromkeys(texts, ""), **dict.fromkeys(numbers, 9), "label": "A", "model": "VAE",
        "data": "digits", "split": "test", "binarize": "none", "decoder": "joint", "seed": 0,
        "data_seed": 0, "train_seconds": 1.0, "steps_per_second": 1.0, "model_options": {},
        "guide_options": {}, "versions": {}, "history": [],
    }  # fmt: skip
    return Row(**values | changes)
