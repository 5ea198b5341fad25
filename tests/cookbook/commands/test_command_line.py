"""The command line: commands as a user types them, and the errors for mistakes in them."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lossbook import describe_loss
from lossbook.cookbook import sft
from lossbook.cookbook.cli import COMMANDS, main
from lossbook.cookbook.run.runs import open_run, read_settings
from lossbook.datums.errors import UnknownLossError
from lossbook.losses import list_losses, list_presets

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def honest(logprobs: Tensor) -> Tensor:
    """A loss that keeps the laws."""
    return -logprobs


def in_the_hosted_signature(data: Any, logprobs_list: Any) -> Any:
    """A loss whose inputs are unknown."""
    return -sum(logprobs.sum() for logprobs in logprobs_list), {}


def reduces_itself(logprobs: Tensor) -> Tensor:
    """A loss that breaks its contract."""
    return -logprobs.mean()


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process with one thread; `path` is put before its own module path."""
    paths = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env, timeout=300
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "2 + 3 = ", "completion": "5"}\n' * 4)
    return path


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` appends the working directory to sys.path and may set environment variables."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(" ".join(name) in shown and command.summary in shown for name, command in COMMANDS.items())
    assert main(["losses"]) == 2
    shown = capsys.readouterr().out
    assert "losses show" in shown
    assert "train sft" not in shown


def test_the_top_level_help_imports_neither_the_trainers_nor_the_recipes_libraries() -> None:
    heavy = "transformers peft matplotlib hypothesis reasoning_gym tyro"
    code = f"import sys; from lossbook.cookbook.cli import main; main(['--help']); assert not {{*{heavy.split()}}} & {{*sys.modules}}"
    python(code)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["quikstart"], "lossbook quickstart"),
        (["losses", "lst"], "lossbook losses list"),
        (["trian", "sft"], "lossbook train sft"),
    ],
)
def test_a_misspelt_command_exits_with_2_and_the_likeliest_one(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--learning-rte", "0.1"], "--learning-rate"),
        (["--truncation", "rihgt"], "'right'"),
        (["--rank", "many"], "--rank takes a whole number of at least 1, not 'many'"),
        (["--rank"], "--rank needs a value after it: rank of the LoRA adapters"),
        (
            ["--loss-config", "beta"],
            "--loss-config takes pairs of a name and a value, and 'beta' has no value after it",
        ),
        (
            ["--log-to", "wandbb"],
            "--log-to takes tensorboard, wandb, mlflow or trackio, not 'wandbb'. Did you mean 'wandb'?",
        ),
        (
            ["rows.jsonl"],
            "lossbook train sft does not take 'rows.jsonl' here; `lossbook train sft --help` lists what it takes",
        ),
        (["--rank", "0"], "--rank takes a whole number of at least 1, not 0"),
        ([], "choose one of --data FILE and --task NAME"),
    ],
)
def test_a_mistake_in_a_flag_exits_with_2_and_names_it(
    flags: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "sft", *flags]) == 2
    shown = capsys.readouterr().err
    assert hint in shown
    assert "Traceback" not in shown
    assert "errors.pydantic.dev" not in shown


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--loss", "cross_entrpy"],
            2,
            "UnknownLossError: no loss is registered as 'cross_entrpy'. Did you mean 'cross",
        ),
        (
            ["--loss-config", "reductoin", "sum"],
            2,
            "LossConfigError: cross_entropy has no setting 'reductoin'. Did you",
        ),
        (["--data", "nowhere.jsonl"], 1, "DataFileError: nowhere.jsonl: cannot be read: No such file or directory"),
        (["--max-length", "3"], 1, "TruncationError: train.jsonl, line 1: 10 tokens are longer than max_length=3"),
    ],
)
def test_an_error_of_lossbook_is_one_line_without_a_traceback(
    flags: list[str], code: int, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "sft", "--data", str(data), "--out", str(tmp_path / "run"), *flags]
    assert main(words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_debug_keeps_the_traceback() -> None:
    with pytest.raises(UnknownLossError):
        main(["losses", "show", "ppoo", "--debug"])


def test_flags_override_the_config_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'data = "{data}"\nsteps = 1\nrank = 2\nseed = 3\nloss_config = {{ reduction = "sum" }}\n')
    assert main(["train", "sft", "--config", str(file), "--out", str(tmp_path / "run"), "--seed", "5"]) == 0
    settings = read_settings(tmp_path / "run")
    assert (settings["seed"], settings["rank"], settings["loss_config"]) == (5, 2, {"reduction": "sum"})


def test_the_settings_that_a_run_saved_start_it_again(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", "sft", "--data", str(data), "--steps", "1", "--out", str(first)]) == 0
    assert main(["train", "sft", f"--config={first / 'config.json'}", "--out", str(second)]) == 0
    assert read_settings(second) == {**read_settings(first), "out": str(second)}
    assert main(["train", "sft", "--config", str(second / "config.json"), "--steps", "2", "--resume"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1.0", "no setting is called 'learning_rat'. Did you mean 'learning_rate'?"),
        ('rank = "many"', "line 1: rank takes a whole number of at least 1, not 'many'"),
        ("rank = 0", "line 1: rank takes a whole number of at least 1, not 0"),
        ("rank = ", "not TOML"),
    ],
)
def test_a_mistake_in_a_config_file_exits_with_2_and_names_file_and_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert main(["train", "sft", "--config", str(file)]) == 2
    shown = capsys.readouterr().err
    assert "run.toml" in shown
    assert message in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "must hold names and values"),
        ("b.json", "{", "not JSON"),
        ("d.json", "[" * 100_000, "nested too deeply"),
        ("d.toml", "a = " + "[" * 9000, "nested too deeply"),
        ("c.toml", None, "cannot be read"),
    ],
    ids=["no table", "cut off", "deep JSON", "deep TOML", "missing"],
)
def test_a_file_that_is_no_config_file_is_an_error(
    name: str, content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["train", "sft", "--config", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_the_example_config_file_holds_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[sft.SFTConfig] = []
    monkeypatch.setattr(sft, "main", taken.append)
    assert main(["train", "sft", "--config", str(EXAMPLES / "sft.toml")]) == 0
    assert taken[0].task == "letter_counting"


def wide(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """As in a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(columns))


def test_losses_are_listed_by_family_with_what_they_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide(monkeypatch, 300)
    assert main(["losses", "list"]) == 0
    shown, _, not_offered = capsys.readouterr().out.partition("\nnot offered (")
    assert "stable_reinforce" in not_offered
    head, _, columns, *lines = shown.splitlines()
    assert head.startswith(f"{len(list_losses())} losses, {len(list_presets())} presets")
    assert columns.split() == ["id", "per", "reads", "[optional]", "formula", "reduction"]
    families = {
        line.split()[0]: int(line.split("(")[1][:-1]) for line in lines if line.endswith(")") and "  " not in line
    }
    assert sum(families.values()) == len(list_losses())
    assert {"embedding", "policy", "preference", "supervised"} <= {*families}
    assert {line.split()[0] for line in lines if line and "  " in line and line[0] != " "} == {*list_losses()}
    grpo = next(line for line in lines if line.startswith("grpo "))
    assert "logprobs, sampling_logprobs, advantages, [ref_logprobs]" in grpo
    assert describe_loss("grpo").formula in grpo


def test_presets_are_listed_by_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wide(monkeypatch, 450)
    assert main(["losses", "list", "--presets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{len(list_presets())} presets; ")
    assert [line.split()[0] for line in lines if "  " in line] == list_presets()
    assert "tinker:ppo" in next(line for line in lines if "ppo(reduction='sum', clip_low=0.8" in line)
    assert main(["losses", "list", "--presets", "--json"]) == 0
    assert [preset["name"] for preset in json.loads(capsys.readouterr().out)] == list_presets()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("losses list", id="the list"),
        pytest.param("losses list --presets", id="the presets"),
        pytest.param("losses show prime:default", id="a preset of two losses"),
        pytest.param("losses diff topk_jsd topk_forward_kl", id="a comparison with a wide table"),
    ],
)
def test_what_is_printed_of_losses_fits_the_terminal_and_breaks_no_word(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wide(monkeypatch, 1000)
    assert main(words.split()) == 0
    known = {word.rstrip(",:") for word in capsys.readouterr().out.split()}
    known |= {"[T]", *["No", "room", "for", "widen", "the", "terminal", "or", "set", "COLUMNS."]}
    for columns in (60, 80, 140):
        wide(monkeypatch, columns)
        assert main(words.split()) == 0
        shown = capsys.readouterr().out
        assert all(len(line) <= columns and line == line.rstrip() for line in shown.splitlines())
        assert {word.rstrip(",:") for word in shown.split() if any(map(str.isalpha, word))} <= known


def test_a_preset_is_shown_with_its_own_settings_and_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "show", "tinker:cispo"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tinker:cispo: cispo with clip_low=0.0, clip_high=4.0, reduction='sum'\nread from: tinker")
    assert "  clip_high    4.0" in shown
    assert main(["losses", "show", "tinker:cispo", "--json"]) == 0
    preset = json.loads(capsys.readouterr().out)["preset"]
    assert (preset["loss"], preset["package"]) == ("cispo", "tinker")
    assert preset["read_from"].startswith(f"tinker {preset['version']}, ")


def test_a_preset_of_several_losses_is_shown_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "show", "prime:default"]) == 0
    shown = capsys.readouterr().out
    assert "\ndppo\n" in shown
    assert "\nsampler_kl\n" in shown
    assert main(["losses", "show", "prime:default", "--json"]) == 0
    assert [part["name"] for part in json.loads(capsys.readouterr().out)["parts"]] == ["dppo", "sampler_kl"]
    assert main(["losses", "diff", "prime:default", "dppo"]) == 0
    assert "plus sampler_kl" in capsys.readouterr().out


def test_the_cards_of_all_losses_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "list", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in cards] == list_losses()
    assert {card["family"] for card in cards} >= {"policy", "preference"}


def test_plug_ins_that_failed_to_load_are_listed_after_the_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lossbook.losses.plugin_errors", lambda: {"mine": "ImportError: no yours"})
    assert main(["losses", "list"]) == 0
    shown = capsys.readouterr()
    assert "cross_entropy" in shown.out
    assert shown.err == "plug-in 'mine' failed to load: ImportError: no yours\n"


@pytest.mark.slow
def test_an_installed_plug_in_that_is_broken_does_no_harm(tmp_path: Path) -> None:
    installed = tmp_path / "broken_plug_in-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plug-in\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[lossbook.losses]\nbroken_plug_in = no_such_module_anywhere:loss\n")
    shown = python("from lossbook.cookbook.cli import main; assert main(['losses', 'list']) == 0", tmp_path)
    assert "cross_entropy" in shown.stdout
    assert "plug-in 'broken_plug_in' failed to load: ModuleNotFoundError" in shown.stderr


def test_a_loss_is_shown_with_formula_settings_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "show", "ppo"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("min(r A, clip(r) A)", "clip_high    1.2", "arXiv:1707.06347"))
    assert "over the log-ratio to the sampler (nats)" in shown


def test_a_card_as_json_has_the_points_of_its_curve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "show", "ppo", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["settings"]["clip_high"] == {
        "name": "clip_high",
        "type": "float",
        "default": 1.2,
        "bounds": "at least 1",
        "required": False,
    }
    assert [line["label"] for line in card["curve"]["lines"]] == ["A = +1", "A = -1"]


def test_a_users_loss_has_a_card_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert main(["losses", "show", f"{Path(__file__).stem}:honest"]) == 0
    assert capsys.readouterr().out.startswith("honest\n  A loss that keeps the laws.\n")
    assert main(["losses", "show", f"{Path(__file__).stem}:in_the_hosted_signature", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curve"] is None


def test_two_losses_are_set_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "diff", "ppo", "importance_sampling"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("A  ppo\nB  importance_sampling\n\nthey differ in\n")
    assert "A -0.227407  B -0.443467" in shown
    assert main(["losses", "diff", "ppo", "importance_sampling", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["reduced"] == [["sum", pytest.approx(-0.227407, abs=1e-6), pytest.approx(-0.443467, abs=1e-6)]]
    assert main(["losses", "diff", "ppo", "ppoo"]) == 2
    assert "Did you mean 'ppo' or 'dppo'?" in capsys.readouterr().err


def test_checking_a_loss_exits_with_0_when_it_keeps_the_laws_and_with_1_when_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    here = Path(__file__).stem
    assert main(["losses", "check", f"{here}:honest", "--examples", "2"]) == 0
    assert main(["losses", "check", f"{here}:reduces_itself", "--examples", "2"]) == 1
    assert "failed" in capsys.readouterr().out
    assert main(["losses", "check"]) == 2


def test_checking_a_loss_leaves_frozen_what_the_program_had_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    assert main(["losses", "check", "cross_entropy", "--examples", "1"]) == 0
    assert gc.get_freeze_count() >= frozen


@pytest.mark.parametrize(
    ("law", "code", "said"),
    [
        pytest.param('value_at_reference={"value": 1.5}', 1, "the loss is 0.69", id="a law that it breaks"),
        pytest.param(
            'value_at_reference={"value": 0.6931471805599453}',
            0,
            "value_at_reference ",
            id="a law that it keeps",
        ),
        pytest.param("value_at_refrence", 1, "Did you mean 'value_at_reference'?", id="a misspelt law"),
        pytest.param("value_at_reference={", 2, "the settings are not JSON", id="settings that are no JSON"),
        pytest.param("value_at_reference=" + "[" * 9000, 2, "the settings are not JSON", id="settings too deep"),
        pytest.param("value_at_reference=1", 2, "must be a JSON object", id="settings without names"),
    ],
)
def test_a_loss_can_be_checked_against_a_law_of_its_family(
    law: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["losses", "check", "dpo", "--examples", "2", "--law", law]) == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


def test_data_are_shown_with_learned_tokens_marked(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(data), "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert "train.jsonl, line 1: 10 tokens, 2 learned" in shown
    assert "«5" in shown
    assert "line 2" not in shown


def test_a_loss_in_a_file_beside_the_user_is_found(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loss_beside_the_user.py").write_text("def plain(logprobs):\n    return -logprobs\n")
    monkeypatch.chdir(tmp_path)
    words = ["train", "sft", "--data", str(data), "--steps", "1", "--loss", "loss_beside_the_user:plain"]
    assert main(words) == 0
    assert json.loads((tmp_path / "runs" / "sft" / "config.json").read_text())["loss"] == "loss_beside_the_user:plain"


def test_a_loss_in_a_file_beside_the_user_is_checked_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "def plain(logprobs, advantages):\n    return -advantages * logprobs\n"
    (tmp_path / "bare_loss_beside_the_user.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    name = "bare_loss_beside_the_user:plain"
    assert main(["losses", "check", name, "--examples", "2", "--law", "on_policy_is_reinforce"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("plain: 21 passed, 6 skipped\n")
    assert re.search(r"passed +order +The order of datums", shown)
    assert main(["losses", "diff", name, "reinforce"]) == 0
    assert "sum  A 0.85  B 0.85" in capsys.readouterr().out


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    def interrupted(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "main", interrupted)
    assert main(["train", "sft", "--data", str(data)]) == 130


@pytest.mark.parametrize("earlier", [False, True], ids=["a new folder", "--overwrite"])
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        pytest.param(["--data", "d.jsonl", "--learning-rat", "1"], 2, "", id="a flag"),
        pytest.param(["--data", "d.jsonl", "--loss", "cross_entropi"], 2, "cross_entropi", id="a loss"),
        pytest.param(
            ["--data", "d.jsonl", "--loss-config", "reductoin", "sum"], 2, "reductoin", id="a setting of the loss"
        ),
        pytest.param(["--task", "letter_countin"], 2, "letter_countin", id="a task"),
        pytest.param(["--task", "graph_color"], 2, "graph_color cannot be imitated", id="a task without answers"),
        pytest.param(["--data", "none.jsonl"], 1, "none.jsonl", id="a file"),
        pytest.param(["--data", "bad.jsonl"], 1, "bad.jsonl, line 1", id="a row"),
        pytest.param(["--data", "d.jsonl", "--model", "no/such.gguf"], 1, "no/such.gguf", id="a model"),
        pytest.param(["--data", "d.jsonl", "--device", "cudda"], 1, "cudda", id="a device"),
        pytest.param(["--data", "d.jsonl", "--rank", "100000"], 1, "rank", id="a rank"),
        pytest.param(["--data", "d.jsonl", "--max-length", "3"], 1, "d.jsonl, line 1", id="a length"),
        pytest.param(["--data", "d.jsonl", "--start-from", "nowhere"], 1, "nowhere", id="weights to start from"),
    ],
)
def test_a_mistake_ends_the_run_before_anything_is_written_or_deleted(
    flags: list[str],
    code: int,
    message: str,
    earlier: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]
    Path("d.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    Path("bad.jsonl").write_text(json.dumps({"mesages": turns}) + "\n")
    if earlier:
        open_run("run", {"seed": 7}).log(1, {"loss": 2.0})
        flags = [*flags, "--overwrite"]
    before = {path.name: path.read_bytes() for path in Path("run").glob("*")}
    assert main(["train", "sft", "--out", "run", *flags]) == code
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("run").glob("*")} == before
    assert Path("run").exists() == earlier
