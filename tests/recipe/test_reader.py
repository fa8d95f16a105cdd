from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vidgen.config import Presets, config, to_dict
from vidgen.errors import UserError
from vidgen.recipe.reader import diff, dump_yaml, read_recipe


@config
class Net:
    depth: PositiveInt = 4
    width: PositiveInt = 64
    heads: PositiveInt = 2
    axes: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 3)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into heads {self.heads}")


NETS = {"small": Net(depth=1), "large": Net(depth=19, width=128)}


@config
class Optim:
    lr: PositiveFloat = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: NonNegativeInt = 0
    clip: PositiveFloat | None = 1.0


@config
class Bucket:
    batch: PositiveInt
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0


@config
class Dct:
    kind: Literal["dct"] = "dct"
    luma: PositiveInt = 4


@config
class Vae:
    kind: Literal["vae"] = "vae"
    path: str


@config
class Recipe:
    steps: PositiveInt
    seed: int = 0
    name: str = "run"
    resume: bool = True
    mode: Literal["fast", "exact"] = "fast"
    model: Annotated[Net, Presets(NETS)] = NETS["small"]
    optim: Optim = Optim()
    codec: Annotated[Dct | Vae, Field(discriminator="kind")] = Dct()
    buckets: dict[str, dict[str, Bucket]] = Field(default_factory=dict)
    prompts: list[str] = Field(default_factory=list)


def read(data: dict[str, Any] | Path, *overrides: str) -> Recipe:
    return read_recipe({"steps": 1, **data} if isinstance(data, dict) else data, overrides, Recipe)


def refusal(data: dict[str, Any] | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(data, *overrides)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def test_file_becomes_the_dataclass(write: Any) -> None:
    path = write(
        "r.yaml",
        "steps: 1_000\noptim: {lr: 3e-5, betas: [0.9, 0.99]}\n"
        "buckets:\n  256px:\n    1: {batch: 45}\n    5-33: {batch: 12}\n",
    )
    recipe = read(path)
    assert recipe.steps == 1000
    assert recipe.optim == Optim(lr=3e-5, betas=(0.9, 0.99))
    assert recipe.buckets == {"256px": {"1": Bucket(batch=45), "5-33": Bucket(batch=12)}}


@pytest.mark.parametrize("text", ["16:9", "no", "on", "2024-01-01", "1.2.3", "'3'", "0x10"])
def test_what_is_not_plainly_a_number_is_text(write: Any, text: str) -> None:
    assert read(write("r.yaml", f"steps: 1\nname: {text}\n")).name == text.strip("'")


@pytest.mark.parametrize("text", ["3e-5", "3E-5", "0.00003", "3.0e-5", "+3e-05", ".3e-4"])
def test_every_spelling_of_a_float(text: str) -> None:
    assert read({}, f"optim.lr={text}").optim.lr == pytest.approx(3e-5, rel=1e-12)


def test_one_key_spelled_two_ways_is_one_key(write: Any) -> None:
    write("base.yaml", "steps: 1\nbuckets: {64px: {'1000': {batch: 3}}}\n")
    path = write("r.yaml", "base: base.yaml\nbuckets: {64px: {1_000: {batch: 4}}}\n")
    assert read(path).buckets == {"64px": {"1000": Bucket(batch=4)}}


def test_overrides_win_in_order_and_reach_new_keys() -> None:
    recipe = read({"seed": 1}, "seed=2", "seed=3", "buckets.64px.17.batch=8", "prompts=[a, b c]")
    assert recipe.seed == 3
    assert recipe.buckets["64px"]["17"].batch == 8
    assert recipe.prompts == ["a", "b c"]


def test_an_override_with_a_mapping_replaces_it() -> None:
    data = {"buckets": {"64px": {"1": {"batch": 2}}}}
    assert list(read(data, "buckets={256px: {5: {batch: 1}}}").buckets) == ["256px"]


@pytest.mark.parametrize("text", ["seed", "=3", "seed=", ".seed=1", "optim..lr=1", ""])
def test_malformed_override(text: str) -> None:
    assert "write key=value, such as optim.lr=3e-5" in refusal({}, text)


# -- unknown keys --


def test_unknown_key_names_the_nearest_and_the_line(write: Any) -> None:
    path = write("r.yaml", "steps: 1\noptim:\n  betas: [0.9, 0.99]\n  lrr: 3e-5\n")
    expected = f"{path}, line 4: unknown key 'optim.lrr' (did you mean 'optim.lr'?)"
    assert refusal(path) == expected


def test_unknown_override_says_it_came_from_the_command_line() -> None:
    assert refusal({}, "optim.lrr=1") == (
        "command line: unknown key 'optim.lrr' (did you mean 'optim.lr'?)"
    )


def test_unknown_key_found_elsewhere_in_the_recipe() -> None:
    assert refusal({"warmup": 3}) == "unknown key 'warmup' (did you mean 'optim.warmup'?)"


def test_unknown_key_like_nothing_lists_what_there_is() -> None:
    assert refusal({"optim": {"zzz": 3}}) == (
        "unknown key 'optim.zzz'; valid keys: optim.lr, optim.betas, optim.warmup, optim.clip"
    )


def test_unknown_key_inside_a_dict_of_configs() -> None:
    data = {"buckets": {"64px": {"1": {"batch": 1, "keeep": 1}}}}
    assert refusal(data) == (
        "unknown key 'buckets.64px.1.keeep' (did you mean 'buckets.64px.1.keep'?)"
    )


def test_unknown_key_inside_a_union() -> None:
    assert refusal({"codec": {"kind": "dct", "lumma": 3}}) == (
        "unknown key 'codec.lumma' (did you mean 'codec.luma'?)"
    )


# -- wrong types and impossible values --


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "optim.lr is -1: must be greater than 0"),
        ("optim.lr=.inf", "optim.lr is '.inf': must be a number"),
        ("optim.lr=1e999", "optim.lr is inf: must be a finite number"),
        ("optim.lr=fast", "optim.lr is 'fast': must be a number"),
        ("optim.lr='3e-5'", "optim.lr is '3e-5': must be a number"),
        ("optim.lr=true", "optim.lr is true: must be a number"),
        ("optim.betas=0.9", "optim.betas is 0.9: must be a list"),
        ("optim.betas.0=0.9", "optim.betas is {'0': 0.9}: must be a list"),
        ("optim.betas=[0.9, x]", "optim.betas.1 is 'x': must be a number"),
        ("optim=3", "optim is 3: must be a mapping (key: value)"),
        ("optim.lr.x=3", "optim.lr is {'x': 3}: must be a number"),
        ("steps=0", "steps is 0: must be greater than 0"),
        ("steps=1.5", "steps is 1.5: must be a whole number"),
        ("steps='10'", "steps is '10': must be a whole number"),
        ("steps=true", "steps is true: must be a whole number"),
        ("name=3", "name is 3: must be text"),
        ("resume=1", "resume is 1: must be true or false"),
        ("resume=yes", "resume is 'yes': must be true or false"),
        ("mode=slow", "mode is 'slow': must be 'fast' or 'exact'"),
        ("codec.kind=wavelet", "codec.kind is 'wavelet': must be one of 'dct', 'vae'"),
        ("codec.kind=vae", "codec.path is missing: write codec.path: text"),
        ("prompts=[1]", "prompts.0 is 1: must be text"),
        ("prompts=a", "prompts is 'a': must be a list"),
        (
            "buckets.64px.1={batch: 1, keep: 2}",
            "buckets.64px.1.keep is 2: must be greater than 0 and at most 1",
        ),
        ("model.width=3", "model: width 3 does not divide into heads 2"),
    ],
)
def test_refused_in_one_line(override: str, message: str) -> None:
    assert refusal({}, override) == f"command line: {message}"


def test_a_missing_key_says_what_to_write(write: Any) -> None:
    path = write("r.yaml", "seed: 1\n")
    assert refusal(path) == f"{path}: steps is missing: write steps: a whole number"


def test_an_empty_value_is_not_silently_the_default(write: Any) -> None:
    path = write("r.yaml", "steps: 1\noptim:\n  lr:\n")
    assert refusal(path) == f"{path}, line 3: optim.lr is null: must be a number"


def test_all_mistakes_are_listed_one_a_line(write: Any) -> None:
    path = write("r.yaml", "steps: -1\nmode: slow\nsed: 3\n")
    assert sorted(refusal(path).splitlines()) == [
        f"{path}, line 1: steps is -1: must be greater than 0",
        f"{path}, line 2: mode is 'slow': must be 'fast' or 'exact'",
        f"{path}, line 3: unknown key 'sed' (did you mean 'seed'?)",
    ]


def test_a_clash_between_file_and_override_names_both(write: Any) -> None:
    path = write("r.yaml", "steps: 1\nmodel: {heads: 4}\n")
    assert refusal(path, "model.width=3") == (
        f"{path}, line 2 and the command line: model: width 3 does not divide into heads 4"
    )


def test_whole_numbers_do_for_floats() -> None:
    assert read({}, "optim.lr=1").optim.lr == 1.0


# -- files --


def test_base_is_found_beside_the_file_and_merged_deeply(write: Any) -> None:
    write("common/base.yaml", "steps: 5\noptim: {lr: 1e-3, warmup: 7}\nprompts: [a, b]\n")
    path = write("r.yaml", "base: common/base.yaml\noptim: {lr: 2e-3}\nprompts: [c]\n")
    recipe = read(path)
    assert recipe.steps == 5
    assert recipe.optim == Optim(lr=2e-3, warmup=7)
    assert recipe.prompts == ["c"]


def test_later_bases_win_and_errors_name_the_file_they_come_from(write: Any) -> None:
    write("a.yaml", "steps: 5\nseed: 1\n")
    b = write("b.yaml", "# the second\nseed: two\n")
    path = write("r.yaml", "base: [a.yaml, b.yaml]\n")
    assert refusal(path) == f"{b}, line 2: seed is 'two': must be a whole number"
    assert read(path, "seed=3").seed == 3


def test_null_removes_what_was_inherited(write: Any) -> None:
    write("base.yaml", "steps: 5\nseed: 4\nbuckets: {64px: {1: {batch: 1}, 5: {batch: 2}}}\n")
    path = write("r.yaml", "base: base.yaml\nseed: null\nbuckets: {64px: {1: null}}\n")
    recipe = read(path)
    assert recipe.seed == 0
    assert list(recipe.buckets["64px"]) == ["5"]


def test_null_is_a_value_where_the_key_may_hold_it(write: Any) -> None:
    write("base.yaml", "steps: 5\noptim: {clip: 2.0}\n")
    assert read(write("r.yaml", "base: base.yaml\noptim: {clip: null}\n")).optim.clip is None
    assert read({}, "optim.clip=null").optim.clip is None


def test_replace_takes_the_whole_mapping_away(write: Any) -> None:
    write("base.yaml", "steps: 5\nbuckets: {64px: {1: {batch: 1}}}\n")
    path = write("r.yaml", "base: base.yaml\nbuckets: !replace {256px: {1: {batch: 3}}}\n")
    assert list(read(path).buckets) == ["256px"]


def test_circular_bases(write: Any) -> None:
    write("a.yaml", "base: b.yaml\n")
    assert "refers back to the same file" in refusal(write("b.yaml", "base: a.yaml\n"))


def test_a_missing_file_names_the_nearest(write: Any) -> None:
    path = write("stage1.yaml", "steps: 1\n")
    assert refusal(path.with_name("stage.yaml")).endswith("(did you mean 'stage1.yaml'?)")
    assert "stage1.yaml" in refusal(write("r.yaml", "base: stgae1.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nseed: 2\nsteps: 3\n", "line 3: 'steps' is already set on line 1; keep one"),
        ("steps: [1\n", "not valid YAML"),
        ("steps: 1\n\tseed: 2\n", "line 2: not valid YAML"),
        ("- steps\n", "expected a mapping"),
        ("steps: !!python/name:os.system 1\n", "line 1: the tag"),
        ("steps: !secret 1\n", "line 1: the tag '!secret' is not supported"),
        ("steps: 1\nmodel: &m {depth: *m}\n", "line 2: nested more than 50 levels"),
        ("steps: 1\n[1, 2]: 3\n", "line 2: not valid YAML: a key must be text"),
        ("base: 3\nsteps: 1\n", "base is 3: must be the path of a recipe"),
    ],
)
def test_a_broken_file(write: Any, text: str, message: str) -> None:
    assert message in refusal(write("r.yaml", text))


def test_the_same_value_read_twice_through_an_anchor(write: Any) -> None:
    path = write("r.yaml", "steps: 1\nbuckets: {a: &x {1: {batch: 3}}, b: *x}\n")
    recipe = read(path)
    assert recipe.buckets["a"] == recipe.buckets["b"]


# -- presets --


@pytest.mark.parametrize("value", ["large", {"preset": "large"}])
def test_a_preset_by_name(value: Any) -> None:
    assert read({"model": value}).model == NETS["large"]


def test_a_preset_with_changes() -> None:
    assert read({"model": {"preset": "large", "depth": 2}}).model == Net(depth=2, width=128)
    assert read({"model": "large"}, "model.depth=2").model == Net(depth=2, width=128)
    assert read({}, "model=large", "model.depth=2").model == Net(depth=2, width=128)
    assert read({}, "model.preset=large").model == NETS["large"]


def test_naming_a_preset_replaces_what_was_inherited(write: Any) -> None:
    write("base.yaml", "steps: 1\nmodel: {preset: large, depth: 7}\n")
    path = write("r.yaml", "base: base.yaml\nmodel: {preset: small, width: 32}\n")
    assert read(path).model == Net(depth=1, width=32)
    assert read(path, "model=small").model == NETS["small"]


def test_unknown_preset_and_wrong_key_within() -> None:
    assert refusal({}, "model=lrge") == (
        "command line: model: there is no preset 'lrge' (did you mean 'large'?)"
    )
    assert refusal({}, "model=large", "model.dept=2") == (
        "command line: unknown key 'model.dept' (did you mean 'model.depth'?)"
    )
    assert "model.depth is -2: must be greater than 0" in refusal(
        {"model": {"preset": "large", "depth": -2}}
    )


def test_a_preset_works_in_python_too() -> None:
    assert Recipe(steps=1, model="large").model == NETS["large"]  # type: ignore[arg-type]


# -- out again --


def test_dump_and_read_back(write: Any) -> None:
    recipe = read(
        {"buckets": {"64px": {"5-33": {"batch": 1}}}, "name": "3e-5", "codec": {"kind": "dct"}},
        "model=large",
        "optim.lr=3e-5",
        "prompts=['16:9', 'no', '1_0']",
    )
    assert read(write("out.yaml", dump_yaml(recipe))) == recipe
    assert to_dict(recipe)["model"]["axes"] == [1, 2, 3]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=12), lr=st.floats(min_value=1e-300, max_value=1e300))
def test_any_text_and_float_survive_a_round_trip(tmp_path: Path, name: str, lr: float) -> None:
    recipe = Recipe(steps=1, name=name, optim=Optim(lr=lr))
    path = tmp_path / "r.yaml"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    assert read(path) == recipe


def test_diff_lists_changed_added_and_absent_values() -> None:
    a = read({"buckets": {"64px": {"1": {"batch": 1}}}})
    b = read({}, "optim.lr=3e-5", "model=large")
    assert diff(a, b) == [
        "model.depth: 1 -> 19",
        "model.width: 64 -> 128",
        "optim.lr: 0.0001 -> 3e-05",
        "buckets.64px.1.batch: 1 -> (absent)",
        "buckets.64px.1.keep: 1 -> (absent)",
    ]
    assert diff(a, a) == []


def test_a_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        Optim().lr = 3.0  # type: ignore[misc]
    with pytest.raises(Exception, match="positional"):
        Optim(1e-3)  # type: ignore[misc]
