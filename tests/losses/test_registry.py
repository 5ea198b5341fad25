"""Finding losses by their id, making them from functions, configuring them, and describing them."""

from __future__ import annotations

import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from lossbook import describe_loss, get_loss, list_losses, register_loss, unregister_loss
from lossbook.datums.errors import DuplicateLossError, LossConfigError, LossContractError, UnknownLossError
from lossbook.losses import Loss, Positive, plugin_errors, registry
from lossbook.losses.registry import functions_in, register_resolver, reserve_ids

from .cases import datum, evaluated

SHIPPED = ["cross_entropy", "dpo", "grpo", "importance_sampling", "info_nce", "ppo"]


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, and the plug-ins it pretends to have, are gone after it."""
    list_losses()
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_plugin_errors", {})
    monkeypatch.setattr(registry, "_resolvers", list(registry._resolvers))
    monkeypatch.setattr(registry, "_reserved", dict(registry._reserved))


def scaled(logprobs: Tensor, *, scale: float = 2.0) -> Tensor:
    """-scale logprobs.

    A loss of one setting.
    """
    return -scale * logprobs


# Ids.


def test_the_shipped_losses_are_listed_in_order() -> None:
    assert set(SHIPPED) <= set(list_losses())
    assert list_losses() == sorted(list_losses())


def test_an_unknown_id_names_the_likeliest_and_how_to_list_all() -> None:
    with pytest.raises(UnknownLossError) as caught:
        get_loss("cros_entropy")
    assert str(caught.value) == (
        "no loss is registered as 'cros_entropy'. Did you mean 'cross_entropy' or 'cosent'? `lossbook losses list`, or "
        f"list_losses(), gives all {len(list_losses())}."
    )
    assert isinstance(caught.value, KeyError)
    for function in (describe_loss, unregister_loss):
        with pytest.raises(UnknownLossError, match="no loss is registered as 'nothing like it'"):
            function("nothing like it")


def test_registering_returns_the_function_unchanged_and_makes_it_known() -> None:
    assert register_loss("mine/scaled:v1.0")(scaled) is scaled
    assert "mine/scaled:v1.0" in list_losses()
    assert get_loss("mine/scaled:v1.0", scale=3.0).settings == {"scale": 3.0}
    assert get_loss(scaled).name == "mine/scaled:v1.0"
    unregister_loss("mine/scaled:v1.0")
    assert "mine/scaled:v1.0" not in list_losses()


def test_with_a_loss_its_other_ids_are_free_again() -> None:
    for own in ("mine/first", "mine/second"):
        register_loss(own, aliases=["mine/other", "mine/third"])(scaled)
        assert get_loss("mine/other").name == get_loss("mine/third").name == own
        unregister_loss("mine/third")
        with pytest.raises(UnknownLossError, match="no loss is registered as 'mine/other'"):
            get_loss("mine/other")


def test_the_functions_of_a_package_are_those_registered_in_it() -> None:
    names = {function.__name__ for function in functions_in("lossbook.losses.value")}
    assert names == {
        name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.losses.value")
    }
    register_loss("mine/scaled")(scaled)
    assert functions_in(__name__.rpartition(".")[0]) == [scaled]


def test_an_id_that_is_taken_is_refused_and_says_by_whom() -> None:
    with pytest.raises(DuplicateLossError) as caught:
        register_loss("ppo")(scaled)
    assert str(caught.value) == (
        "'ppo' is registered already, by lossbook.losses.policy.clipped.ppo. Choose another id, or call unregister_loss('ppo') "
        "first, as when a notebook cell runs again"
    )
    assert get_loss("ppo").spec.function is not scaled


@pytest.mark.parametrize("name", ["", "two words", "-dash", "tab\t", "ümlaut", "line\n"])
def test_an_id_that_no_command_line_could_spell_is_refused(name: str) -> None:
    with pytest.raises(LossContractError) as caught:
        register_loss(name)
    assert str(caught.value) == f"{name!r} is not a usable id: letters, digits and _ . / : - only"


# Functions and modules.


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("my_losses")
    made.scaled = scaled  # type: ignore[attr-defined]
    made.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", made)
    return made


@pytest.mark.usefixtures("module")
def test_a_module_and_a_function_name_a_loss() -> None:
    loss = get_loss("my_losses:scaled", scale=0.5)
    assert loss.name == "scaled"
    assert evaluated(loss, [datum(2)], [[-1.0, -3.0]])[0] == 2
    assert "scaled" not in list_losses()


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("my_losses:scald", UnknownLossError, "module 'my_losses' has no 'scald'. Did you mean 'scaled'?"),
        ("my_losses:number", LossContractError, "a loss is an id or a function, not a int"),
        ("no_such_module:scaled", UnknownLossError, "no loss is registered as 'no_such_module:scaled'."),
        (":scaled", UnknownLossError, "no loss is registered as ':scaled'."),
        (".my_losses:scaled", UnknownLossError, "no loss is registered as '.my_losses:scaled'."),
        ("tinker-like:ppo", UnknownLossError, "no loss is registered as 'tinker-like:ppo'."),
    ],
    ids=["a misspelt function", "no function", "no module", "no module name", "a relative module", "no module's name"],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        get_loss(path)
    assert str(caught.value).startswith(message)


def test_a_module_that_fails_to_import_something_else_is_not_hidden(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "needs_more.py").write_text("import need\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'need'"):
        get_loss("needs_more:anything")


def test_a_registered_id_comes_before_a_module_of_that_name(module: types.ModuleType) -> None:
    @register_loss("my_losses:scaled")
    def other(logprobs: Tensor) -> Tensor:
        return -logprobs

    assert get_loss("my_losses:scaled").spec.function is other


@pytest.mark.usefixtures("module")
def test_a_module_may_register_the_very_path_it_is_asked_for(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "registers_itself.py").write_text(
        "from lossbook import register_loss\n"
        "@register_loss('registers_itself:loss', source='here')\n"
        "def loss(logprobs): return -logprobs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get_loss("registers_itself:loss").spec.source == "here"


def test_a_loss_is_taken_as_it_is_and_may_be_configured_further() -> None:
    loss = get_loss("ppo", clip_high=1.5)
    assert get_loss(loss) is loss
    again = get_loss(loss, clip_low_threshold=0.5)
    assert again.settings == {"clip_low": 0.5, "clip_high": 1.5}
    assert loss.settings == {"clip_low": 0.8, "clip_high": 1.5}


@pytest.mark.parametrize("thing", [3, None, ["ppo"]], ids=repr)
def test_what_is_neither_id_nor_function_is_refused(thing: Any) -> None:
    with pytest.raises(LossContractError, match=f"^a loss is an id or a function, not a {type(thing).__name__}$"):
        get_loss(thing)


def test_an_object_with_a_call_is_a_function_too() -> None:
    class Scaled:
        def __call__(self, logprobs: Tensor, *, scale: Positive = 2.0) -> Tensor:
            return -scale * logprobs

    loss = get_loss(Scaled(), scale=3.0)
    assert loss.name == "Scaled"
    assert evaluated(loss, [datum(1)], [[-1.0]])[0] == 3
    with pytest.raises(LossConfigError, match="should be greater than 0"):
        get_loss(Scaled(), scale=-1.0)


# Plug-ins.


class EntryPoint:
    """As importlib.metadata's, loading whatever a test wants."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self.load = load


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that packages with these entry points are installed and none was loaded yet."""

    def pretend(**loads: Callable[[], Any]) -> None:
        points = [EntryPoint(name, load) for name, load in loads.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "lossbook.losses" else [])
        monkeypatch.setattr(registry, "_plugins_loaded", False)

    return pretend


def broken() -> None:
    raise RuntimeError("no such GPU")


def test_plug_ins_are_declared_as_entry_points() -> None:
    assert registry.entry_points is importlib.metadata.entry_points
    assert registry.PLUGIN_GROUP == "lossbook.losses"


def test_a_plug_ins_losses_are_found_by_id_and_loaded_once(plug_in: Callable[..., None]) -> None:
    loaded = []

    def load() -> None:
        loaded.append(1)
        register_loss("plugged/scaled")(scaled)

    plug_in(mine=load)
    assert get_loss("plugged/scaled").spec.function is scaled
    assert "plugged/scaled" in list_losses()
    assert loaded == [1]


def test_shipped_losses_are_found_without_loading_plug_ins(plug_in: Callable[..., None]) -> None:
    plug_in(broken=broken)
    assert get_loss("ppo").name == "ppo"
    assert not registry._plugins_loaded


def test_an_id_with_a_colon_may_come_from_a_plug_in_named_like_a_module(plug_in: Callable[..., None]) -> None:
    plug_in(mine=lambda: register_loss("math:scaled")(scaled))
    assert get_loss("math:scaled").spec.function is scaled


def test_a_broken_plug_in_is_reported_and_the_others_still_load(plug_in: Callable[..., None]) -> None:
    plug_in(broken=broken, working=lambda: register_loss("plugged/scaled")(scaled))
    told = pytest.warns(UserWarning, match=r"^lossbook plug-in 'broken' failed to load: RuntimeError: no such GPU$")
    with told as warned:
        assert "plugged/scaled" in list_losses()
    assert warned[0].filename == __file__, "the line that asked is shown"
    assert plugin_errors() == {"broken": "RuntimeError: no such GPU"}
    with pytest.raises(UnknownLossError, match=r"Plug-in 'broken' failed to load: RuntimeError: no such GPU\.$"):
        get_loss("gpu_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list_losses()  # said once


def test_a_plug_in_cannot_replace_a_shipped_loss(plug_in: Callable[..., None]) -> None:
    shipped = get_loss("ppo").spec.function
    plug_in(shadow=lambda: register_loss("ppo")(scaled))
    with pytest.warns(UserWarning, match="plug-in 'shadow' failed to load: DuplicateLossError: 'ppo' is registered"):
        list_losses()
    assert get_loss("ppo").spec.function is shipped


def test_every_shipped_loss_is_a_loss_object_of_its_id() -> None:
    for name in SHIPPED:
        loss = get_loss(name)
        assert isinstance(loss, Loss)
        assert loss.name == name


def test_a_function_of_a_module_that_is_not_there_is_said_to_be_just_that() -> None:
    with pytest.raises(UnknownLossError, match=r"as 'nomodule:fn'\. There is no module 'nomodule' to import it from"):
        get_loss("nomodule:fn")


def test_get_loss_asks_the_resolvers_about_ids_that_are_not_registered() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    @register_resolver
    def doubled(name: str, config: Any) -> Any:
        asked.append((name, dict(config)))
        return 2.0 * get_loss("cross_entropy") if name == "doubled" else None

    assert get_loss("doubled", some=1).name == "2 * cross_entropy"
    get_loss("ppo")
    assert asked == [("doubled", {"some": 1})]


def test_a_reserved_id_says_why_no_loss_is_offered() -> None:
    reserve_ids({"reserved/one": "it is another system's"})
    with pytest.raises(UnknownLossError, match=r"'reserved/one': it is another system's"):
        get_loss("reserved/one")
