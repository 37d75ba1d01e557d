"""The model card of a saved adapter: what it says, what the Hub reads, and that nothing of a user's own is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel, get_peft_model

from adapted_models import adapted, logits
from localora import CpsLoraConfig, GLoraConfig, export_lora
from localora.adapter.card import hub_id, note_training
from method_table import BY_NAME
from tiny_models import LLAMA_TARGETS, tiny_llama

README = "README.md"


def saved(folder: Path, base: str = "some/model") -> PeftModel:
    config = CpsLoraConfig(
        r=4, alpha=8, clusters=2, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM", placement="random",
        repartition=[0.1, 0.5],
    )  # fmt: skip
    model = tiny_llama()
    model.config._name_or_path = model.name_or_path = base
    model = get_peft_model(model, config)
    save(model, folder)
    return model


def save(model: PeftModel, folder: Path) -> None:
    model.save_pretrained(folder, save_embedding_layers=False)  # or PEFT looks the base model up, on the Hub


def test_what_it_says(tmp_path: Path) -> None:
    saved(tmp_path)
    card = ModelCard.load(tmp_path / README)
    assert card.data.base_model == "some/model"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"localora", "lora", "peft", "base_model:adapter:some/model"} <= set(card.data.tags or [])
    for row in (
        "| base model | [some/model](https://huggingface.co/some/model) |",
        "| method | CPS-LoRA |",
        "| r | 4: as many trainable parameters as LoRA of this rank |",
        "| clusters K | 2 |",
        "| scale of the update | 2 |",
        "| layers | `down_proj`, `gate_proj`, `k_proj`, `q_proj` |",
        "| placement | random |",
        "| events | 10%, 50% of training |",
    ):
        assert row in card.text.splitlines(), row
    assert "frozen term" not in card.text
    for words in ("import localora", "KeyError: 'LOCALIZED'", "localora export", "Jiahao Xiong", "20125-20141"):
        assert words in card.text, words
    assert "More Information Needed" not in card.text


def test_g_lora_and_other_tasks(tmp_path: Path) -> None:
    config = GLoraConfig(
        r=4, local_size=0.5, target_modules="all-linear", task_type="SEQ_CLS", placement="random", repartition_every=50,
        use_rslora=True,
    )  # fmt: skip
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    text = (tmp_path / README).read_text()
    assert "| method | G-LoRA |" in text
    assert "| block | 50% of rows and columns |" in text
    assert "| events | every 50 steps |" in text
    assert "| scale of the update | 4, rank-stabilised |" in text
    assert "AutoModelForSequenceClassification" in text
    assert "| base model | a local folder |" in text


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("/somewhere/hub/models--org--a.name/snapshots/0123abc", "org/a.name"),
        ("/home/someone/models/mine", None),
        ("./mine", None),
        ("tests", None),  # a folder of this name is here
        (None, None),
    ],
)
def test_the_base_model_is_a_hub_id_or_nothing(
    name: str | None, id_: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert hub_id(name) == id_


def test_no_path_of_this_machine_gets_into_it(tmp_path: Path) -> None:
    saved(tmp_path / "cached", base=str(tmp_path / "hub" / "models--org--name" / "snapshots" / "0123"))
    assert ModelCard.load(tmp_path / "cached" / README).data.base_model == "org/name"
    saved(tmp_path / "local", base=str(tmp_path / "mine"))
    assert ModelCard.load(tmp_path / "local" / README).data.base_model is None
    export_lora(tmp_path / "local", tmp_path / "plain")
    for folder in ("cached", "local", "plain"):
        assert str(tmp_path) not in (tmp_path / folder / README).read_text(), folder


def test_what_a_user_wrote_stays_and_the_rest_is_brought_up_to_date(tmp_path: Path) -> None:
    model = saved(tmp_path)
    path = tmp_path / README
    text = path.read_text()
    path.write_text(text.replace("tags:\n", "license: mit\ntags:\n") + "\n## My notes\n\nTwo cats.\n")
    note_training(tmp_path, ["data cats, 7 examples", "loss 2.0 before, 1.0 after"])
    model.peft_config["default"].alpha = 5.0
    for _ in range(2):
        save(model, tmp_path)
    card = ModelCard.load(path)
    assert card.data.license == "mit"
    assert "localora" in (card.data.tags or [])
    assert card.text.count("## My notes\n\nTwo cats.") == 1
    assert card.text.count("| scale of the update | 1.25 |") == card.text.count("# CPS-LoRA adapter") == 1
    assert card.text.count("| training | loss 2.0 before, 1.0 after |") == 1
    assert card.text.index("| training | data cats") < card.text.index("## Load it")


def test_a_card_that_was_there_before_is_kept(tmp_path: Path) -> None:
    (tmp_path / README).write_text("---\nlicense: mit\n---\n# Mine\n\nCats.\n")
    saved(tmp_path)
    text = (tmp_path / README).read_text()
    assert "# Mine\n\nCats." in text
    assert text.index("# CPS-LoRA adapter") < text.index("# Mine")


def test_a_config_alone_writes_none(tmp_path: Path) -> None:
    CpsLoraConfig(r=4).save_pretrained(str(tmp_path))
    assert not (tmp_path / README).exists()


def test_the_code_in_it_loads_the_adapter(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    saved(tmp_path / "adapter")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "adapter" / README).read_text(), re.S)
    assert code is not None
    ready = code[1].replace("some/model", str(tmp_path / "base"))
    scope: dict[str, Any] = {}
    exec(ready.replace("this folder, or its Hub id", str(tmp_path / "adapter")), scope)
    assert scope["model"].peft_config["default"].clusters == 2


def test_the_export_s_card(tmp_path: Path) -> None:
    saved(tmp_path / "adapter")
    note_training(tmp_path / "adapter", ["data cats, 7 examples"])
    report = export_lora(tmp_path / "adapter", tmp_path / "plain")
    card = ModelCard.load(tmp_path / "plain" / README)
    assert card.data.base_model == "some/model"
    assert {"localora", "lora", "peft"} <= set(card.data.tags or [])
    assert "# Plain LoRA, exported from CPS-LoRA" in card.text
    assert f"| this file | rank 8 (exact){'' if report.rank == 8 else ', zero-padded'} |" in card.text
    assert "| training | data cats, 7 examples |" in card.text
    assert "import localora" not in card.text
    assert "More Information Needed" not in card.text


def test_a_stranger_s_card_that_is_no_text_stops_no_export(tmp_path: Path) -> None:
    adapted(BY_NAME["cps-lora"]).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_bytes(b"\xff\xfe\n| training | 3 steps |\n")
    export_lora(tmp_path / "adapter", tmp_path / "plain")
    assert "| training | 3 steps |" in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "adapter" / "README.md").unlink()
    (tmp_path / "adapter" / "README.md").mkdir()
    export_lora(tmp_path / "adapter", tmp_path / "again")


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the Hub: what would have been uploaded.

    For every method of PEFT, transformers puts an empty template over the card that save_pretrained wrote; the page of
    questions says how to publish with ours. Should this fail one day because it no longer does, that page can go.
    """
    uploaded: dict[str, bytes] = {}

    class Url(str):
        repo_id = "me/adapter"

    def create_commit(self: HfApi, repo_id: str, operations: list[Any], **_: Any) -> str:
        assert repo_id == "me/adapter"
        for operation in operations:
            with operation.as_file() as file:
                uploaded[operation.path_in_repo] = file.read()
        return "commit"

    def load(cls: type, source: Any, **options: Any) -> ModelCard:
        if source == "me/adapter":
            raise EntryNotFoundError("no card yet")
        return original(cls, source, **options)

    original = ModelCard.load.__func__

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Url("https://huggingface.co/me/adapter"))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr("transformers.utils.hub.ModelCard.load", classmethod(load))
    model = adapted(BY_NAME["hybrid"])
    model.push_to_hub("me/adapter")
    monkeypatch.undo()
    assert {"adapter_config.json", "adapter_model.safetensors", README} == uploaded.keys()
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert "localora" not in uploaded[README].decode()
