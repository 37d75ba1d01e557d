"""Records of a Hugging Face Hub data set."""

from __future__ import annotations

from localora.lab.data.example import DataError
from localora.lab.data.jsonl import Row


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """The records of one split; cached by the datasets library, so later reads work offline.

    Raises:
        DataError: no such data set, configuration or split; the Hub is out of reach; or the split is empty.
    """
    import datasets  # two seconds, and only this source needs it

    try:
        records = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:  # not found and no connection are both OSError
        raise DataError(
            f"cannot load split {split!r} of the Hub data set {name!r}"
            + (f" ({config})" if config else "")
            + f": {error}\nCheck the id, hub_config and the split's name; offline, load it once while "
            "connected or save it as JSONL and set `path`"
        ) from error
    if len(records) == 0:
        raise DataError(f"split {split!r} of the Hub data set {name!r} holds no examples")
    return [Row(f"{name} {split}, row {index}", record) for index, record in enumerate(records)]
