"""`lossbook export` writes a folder that peft or transformers loads with the trainer's outputs, or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

import lossbook as lb
from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.export import check as export_check
from lossbook.cookbook.export.export import TOLERANCES, check_repository, export, push
from lossbook.cookbook.export.model_card import model_card
from lossbook.cookbook.quickstart import find_smollm2
from lossbook.cookbook.run.runs import open_run
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import ConfigError, ExportError, RunError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.export import VALUE_HEAD_FILE
from lossbook.trainer.model.load import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
TOKENS = list(b"What is exported is what was trained.")


@pytest.fixture
def tied(tmp_path: Path) -> str:
    """A model whose output head is its embedding, as a directory."""
    model = load_model("tiny")
    module: Any = model.module
    module.config.tie_word_embeddings = True
    module.tie_weights()
    module.save_pretrained(tmp_path / "tied")
    model.tokenizer.save_pretrained(tmp_path / "tied")
    return str(tmp_path / "tied")


def trained(folder: Path, base: str = "tiny", *, steps: int = 3, **options: Any) -> tuple[Path, TrainingClient]:
    """A checkpoint after a few steps on `TOKENS`, and its client. rank 0: all weights."""
    service = lb.ServiceClient(device="cpu", checkpoint_dir=folder)
    rank = options.pop("rank", 4)
    if rank:
        client = service.create_lora_training_client(base, rank=rank, seed=0, **options)
    else:
        client = service.create_training_client(base, **options)
    for _ in range(steps):
        if client.get_info().kind == "decoder":
            datum = lb.datum_from_tokens_weights(TOKENS, [1.0] * len(TOKENS))
            client.forward_backward([datum], "cross_entropy", {"reduction": "token-mean"}).result()
        else:
            client.forward_backward_custom([lb.Datum(lb.ModelInput.from_ints(TOKENS), {})], push_up, output="embedding")
        client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()
    return Path(client.save_state("state").result().path), client


def push_up(data: Any, embeddings: Any) -> Any:
    """A loss over embeddings."""
    return -embeddings[0][:8].sum(), {}


def run_of(tmp_path: Path, **changes: Any) -> Path:
    """A short run of the recipe."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "hi", "completion": "ho"}\n')
    settings = {"data": data, "steps": 4, "learning_rate": 1e-2, "out": tmp_path / "run"}
    settings |= {} if "all_weights" in changes else {"rank": 4}
    sft.main(SFTConfig(**{**settings, **changes}))
    return tmp_path / "run"


def logprobs(module: Any) -> Tensor:
    """Of `TOKENS`, by a transformers module."""
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        every = module(input_ids=ids[:, :-1]).logits[0].float().log_softmax(-1)
    return every.gather(1, ids[0, 1:, None])[:, 0]


def trainers_logprobs(client: TrainingClient) -> Tensor:
    datum = lb.datum_from_tokens_weights(TOKENS, [1.0] * len(TOKENS))
    return client.forward([datum]).result().loss_fn_outputs[0]["logprobs"].to_torch()


@pytest.mark.parametrize(
    ("options", "form"),
    [
        pytest.param({}, "adapter", id="an adapter"),
        pytest.param({"train_unembed": True}, "adapter", id="an adapter of the head too"),
        pytest.param({}, "merged", id="an adapter merged"),
        pytest.param({"train_unembed": True}, "merged", id="an adapter of the head too merged"),
        pytest.param({"rank": 0}, "merged", id="all weights"),
    ],
)
@pytest.mark.parametrize("is_tied", [False, True], ids=["own head", "head tied to the embedding"])
def test_peft_and_transformers_give_the_trainers_logprobs(
    tmp_path: Path, tied: str, options: Any, form: Any, is_tied: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tied if is_tied else "tiny"
    state, client = trained(tmp_path / "states", base, **options)
    checked = export(state, tmp_path / "out", format=form)
    if form == "adapter":
        module = PeftModel.from_pretrained(load_model(base).module, str(tmp_path / "out"))
    else:
        module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        own = client.get_tokenizer()
        assert tokenizer.encode("aé<|im_end|>") == own.encode("aé<|im_end|>")
        assert tokenizer.chat_template == own.chat_template
        assert module.generation_config.eos_token_id == [256, 259]
    torch.testing.assert_close(logprobs(module), trainers_logprobs(client), atol=1e-4, rtol=0)
    assert checked.quantity == "logprobs"
    assert checked.largest < 1e-4
    assert checked.from_base > 0.5


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_an_encoders_embeddings_are_compared(tmp_path: Path, form: Any) -> None:
    state, _ = trained(tmp_path / "states", "tiny-encoder")
    checked = export(state, tmp_path / "out", format=form)
    assert checked.quantity == "embeddings"
    assert checked.largest < 1e-5 < 0.1 < checked.from_base
    assert "pipeline_tag: feature-extraction" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_coarser_dtype_is_written_as_such_and_differs_by_its_rounding(tmp_path: Path, dtype: Any) -> None:
    state, _ = trained(tmp_path / "states")
    checked = export(state, tmp_path / "out", format="merged", dtype=dtype)
    assert {str(one.dtype) for one in load_file(tmp_path / "out" / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert 1e-4 < checked.largest < TOLERANCES[dtype]


def test_a_value_head_lies_beside_the_model(tmp_path: Path) -> None:
    state, _ = trained(tmp_path / "states", value_head=True)
    trainers = load_file(state / "weights.safetensors")["value_head.weight"]
    for form in ("adapter", "merged"):
        export(state, tmp_path / form, format=form)  # type: ignore[arg-type]
        head = load_file(tmp_path / form / VALUE_HEAD_FILE)
        assert torch.equal(head["weight"], trainers)
        assert VALUE_HEAD_FILE in (tmp_path / form / "README.md").read_text()


# --- what must not pass -----------------------------------------------------------------------------------------------


def rename(folder: Path, change: Any) -> None:
    """Rewrite an adapter's file."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda weights: {key.replace(".weight", ".default.weight"): value for key, value in weights.items()},
            "28 of its 28 keys match nothing, .* 28 are missing",
            id="peft's inner names",
        ),
        pytest.param(
            lambda weights: dict(list(weights.items())[:-1]),
            "0 of its 27 keys match nothing, .* 1 are missing",
            id="one is missing",
        ),
        pytest.param(
            lambda weights: {key: value * 1.1 for key, value in weights.items()},
            "the export is not what was trained: .* The limit is 0.001",
            id="other numbers",
        ),
        pytest.param(
            lambda weights: {key: torch.zeros_like(value) for key, value in weights.items()},
            "the export is not what was trained",
            id="zeros, which is the base model",
        ),
    ],
)
def test_an_adapter_that_is_not_what_was_trained_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    state, _ = trained(tmp_path / "states")
    write = TrainingClient.export_adapter

    def broken(self: Any, directory: Any) -> Any:
        future = write(self, directory)
        future.result()
        rename(Path(directory), change)
        return future

    monkeypatch.setattr(TrainingClient, "export_adapter", broken)
    with pytest.raises(ExportError, match=message):
        export(state, tmp_path / "out", format="adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


def test_a_whole_model_that_lacks_a_weight_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = trained(tmp_path / "states", rank=0)
    write = TrainingClient.export_model

    def broken(self: Any, directory: Any, **options: Any) -> Any:
        future = write(self, directory, **options)
        future.result()
        path = Path(directory) / "model.safetensors"
        weights = load_file(path)
        weights["model.norm.other"] = weights.pop("model.norm.weight")
        save_file(weights, path, metadata={"format": "pt"})
        return future

    monkeypatch.setattr(TrainingClient, "export_model", broken)
    with pytest.raises(ExportError, match=r"missing \['model.norm.weight'\], unexpected \['model.norm.other'\]"):
        export(state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_untrained_export_is_refused(tmp_path: Path) -> None:
    state, _ = trained(tmp_path / "states", steps=0)
    with pytest.raises(ExportError, match="the export does not differ from the base model"):
        export(state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = trained(tmp_path / "states")
    export(state, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ExportError):
        export(state, tmp_path / "out", format="merged", dtype="bfloat16", tolerance=1e-9, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    export(state, tmp_path / "out", format="merged", overwrite=True)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    adapter, _ = trained(tmp_path / "a", steps=0)
    whole, _ = trained(tmp_path / "b", rank=0, steps=0)
    with pytest.raises(ConfigError, match="is not empty"):
        export(adapter, tmp_path / "full")
    with pytest.raises(ConfigError, match="does not hold a model"):
        export(adapter, tmp_path / "full", overwrite=True)
    with pytest.raises(ConfigError, match="choose --format merged"):
        export(whole, tmp_path / "out", format="adapter")
    with pytest.raises(ConfigError, match="--dtype is for --format merged"):
        export(adapter, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(RunError, match="neither a run nor a checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "out")


# --- from a run, and to the hub ---------------------------------------------------------------------------------------


def test_a_runs_last_checkpoint_is_exported_from_the_command_line_and_compared_on_its_own_data_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path)
    general = sum(len(text.encode()) - 1 for text in export_check.TEXTS)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "logprobs of the export and of the trainer differ by at most" in printed
    assert int(printed.split("out: ")[1].split()[0]) > general
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    own = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(
        torch.equal(own[key], value) for key, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
    )


def test_the_card_tells_base_loss_settings_data_numbers_and_how_to_load_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", str(tmp_path / "train.jsonl"))  # so that a setting holds a secret's value
    run = run_of(tmp_path, loss="focal", loss_config={"gamma": 3.0}, eval_data=tmp_path / "train.jsonl")
    export(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lossbook", "focal", "lora"],
    }
    for part in (
        "A LoRA adapter for `tiny`, trained with the loss `focal`",
        "PeftModel.from_pretrained(build_tiny_model()",
        "differ by at most",
        "gamma        3.0",
        "Lin et al. 2017",
        "| held_out_nll |",
        "labels_kept: 3",
        '"learning_rate": 0.01',
        f"lossbook {lb.__version__}, torch ",
    ):
        assert part in text, part
    assert str(tmp_path / "train.jsonl") not in text
    assert '"data": "[redacted]"' in text


def test_a_base_model_on_the_hub_is_named_in_the_metadata() -> None:
    text = model_card(None, "HuggingFaceTB/SmolLM2-135M", adapter=True, kind="decoder")
    assert ModelCard(text).data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert 'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")' in text


def test_the_card_of_a_mixture_has_the_card_of_each_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"loss": "prime:default", "loss_config": {}}))
    text = model_card(tmp_path, "tiny", adapter=True, kind="decoder")
    section = text.partition("## Loss: prime:default")[2]
    assert "dppo" in section
    assert "sampler_kl" in section
    assert "its card needs the module" not in section


def test_a_run_of_all_weights_ends_with_a_model_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = run_of(tmp_path, all_weights=True, learning_rate=1e-3)
    assert not (run / "adapter").exists()
    module = AutoModelForCausalLM.from_pretrained(run / "model")
    client = lb.ServiceClient().create_training_client_from_state(str(run / "checkpoints" / "step-000004"))
    torch.testing.assert_close(logprobs(module), trainers_logprobs(client), atol=1e-4, rtol=0)
    assert "`lossbook export` checks it" in (run / "model" / "README.md").read_text()


class FakeHub:
    """The two calls of huggingface_hub.HfApi that are made."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.error = error

    def create_repo(self, name: str, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", (name, options)))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


def test_a_checked_export_is_pushed_to_a_private_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    state, _ = trained(tmp_path / "states")
    assert main(["export", str(state), str(tmp_path / "out"), "--push-to", "me/mine"]) == 0
    (_, created), (_, uploaded) = hub.calls
    assert created == ("me/mine", {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/mine", str(tmp_path / "out"))
    assert "pushed to https://huggingface.co/me/mine" in capsys.readouterr().out


def test_an_export_that_fails_its_check_is_never_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    state, _ = trained(tmp_path / "states", steps=0)
    assert main(["export", str(state), str(tmp_path / "out"), "--push-to", "me/mine"]) == 1
    assert hub.calls == []
    assert "the export does not differ from the base model" in capsys.readouterr().err


def test_an_upload_that_fails_is_an_error_with_the_command_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the upload to me/mine failed: no login.*hf upload me/mine"):
        push(tmp_path, "me/mine", api=FakeHub(OSError("no login")))


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "me/my model", "../x", ""])
def test_a_name_that_is_no_hub_repository_is_refused_first(name: str) -> None:
    with pytest.raises(ConfigError, match="--push-to"):
        check_repository(name)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_model_from_a_gguf_file_is_exported(tmp_path: Path, form: Any) -> None:
    state, _ = trained(tmp_path / "states", find_smollm2())
    checked = export(state, tmp_path / "out", format=form)
    assert checked.largest < 1e-3 < 0.1 < checked.from_base


EVIL = "</code>```\n\n<img src=x onerror=alert(1)>\n# `title`|x"


def test_nothing_in_a_run_becomes_markup_of_its_card_and_no_module_that_it_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    folder = tmp_path / "run <img>"
    run = open_run(folder, {"loss": "trap:loss", "data": EVIL, EVIL: 1, "loss_config": {EVIL: EVIL}})
    run.log(1, {f"reward{EVIL}": 1.0, "loss": 2.0})
    run.write("data_report.json", json.dumps({EVIL: 3}))
    card = model_card(folder, EVIL, adapter=True, kind="decoder")
    outside, fence = [], None
    for line in card.splitlines():
        ticks = re.match("`{3,}", line)
        if fence is None and ticks:
            fence = ticks[0]
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(re.sub("`[^`]*`", "", line))
    assert fence is None
    assert "# run &lt;img&gt;" in outside
    assert not [line for line in outside if "<img" in line or line.startswith("# title")]
    assert "trap:loss" in card
