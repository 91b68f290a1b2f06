"""The schema of the parameters: a wrong value is refused by its name, in one sentence."""

import contextlib
import copy
import datetime
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from wavegms import InputError
from wavegms.config import Params, check_params, load_params
from wavegms.run.add import add_dataset

ROOT = Path(__file__).parents[1]

VALUES = {
    "datasets": ["phantom_a", "phantom_b"],
    "variants": ["wave_gms"],
    "seed": 2333,
    "seeds": [1, 2],
    "image_size": 64,
    "phantom": {"datasets": ["phantom_a"], "images": 20, "seed": 0},
    "split": {
        "method": "random",
        "folder": "data/splits",
        "folds": None,
        "test_fraction": 0.2,
        "validation_fraction": 0.1,
    },
    "autoencoder": {
        "source": "train",
        "hub": "madebyollin/taesd",
        "path": "models/taesd",
        "sd_vae": "models/sd_vae",
        "min_mask_dice": 0.9,
        "train": {
            "channels": 16,
            "blocks": 1,
            "steps": 100,
            "batch_size": 8,
            "learning_rate": 0.005,
            "target_dice": 0.97,
            "start_from": None,
        },
    },
    "model": {"sample_at_inference": False, "gms_checkpoint": "models/gms/{dataset}.pth"},
    "loss": {"supervision": "all_levels", "alignment_distance": "l1"},
    "training": {
        "epochs": 1000,
        "minutes": None,
        "start_from": None,
        "recipe": "common",
        "pretrained": None,
        "epochs_by_dataset": {"ham10000": 300},
        "batch_size": 12,
        "learning_rate": 0.002,
        "weight_decay": 0.01,
        "warmup_epochs": 5,
        "selection": "best_on_validation",
        "precision": "auto",
        "compile": False,
        "cuda_graph": False,
        "decoder": "exact",
        "augmentation": {
            "horizontal_flip": 0.5,
            "vertical_flip": 0.5,
            "rotate_90": 0.5,
            "color_jitter": 0.2,
            "shift_scale_rotate": 0.4,
        },
    },
    "evaluation": {"threshold": 0.5, "bootstrap_resamples": 1000, "decoder": "exact"},
    "generalization": [],
    "external": [],
    "ablation": {"datasets": [], "variants": ["wave_gms"], "epochs": 5},
    "foundations": {"datasets": [], "widths": [], "others": [], "epochs": 0},
    "efficiency": {
        "variants": ["unet", "wave_gms"],
        "image_size": 64,
        "batch_sizes": [1, 2],
        "steps": 2,
        "cards": [11, 12],
    },
}


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and key != "epochs_by_dataset":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def sections(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and key != "epochs_by_dataset":
            yield f"{prefix}{key}"
            yield from sections(value, f"{prefix}{key}.")


def changed(key, value=None, remove=False):
    values = copy.deepcopy(VALUES)
    *path, last = key.split(".")
    part = values
    for step in path:
        part = part[step]
    if remove:
        del part[last]
    else:
        part[last] = value
    return values


def refusal(values):
    with pytest.raises(InputError) as error:
        check_params(values)
    message = str(error.value)
    assert message.startswith("params.yaml: ") and "\n" not in message
    return message.removeprefix("params.yaml: ")


LEAVES, SECTIONS = list(leaves(VALUES)), list(sections(VALUES))


def test_a_complete_file_is_accepted_as_it_stands():
    assert check_params(VALUES).model_dump() == VALUES | {"reading": {}}


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (
            {"foreground": [1, "128-255"], "ignore": [255], "drawn_on": "stored", "spacing": [0.1]},
            "",
        ),
        ({"foreground": ["a"]}, "'a' is no grey value"),
        ({"foreground": ["9-3"]}, "'9-3' is no grey value"),
        ({"ignore": [-1]}, "-1 is no grey value"),
        ({"ignore": [70000]}, "70000 is no grey value"),
        ({"ignore": [True]}, "a number belongs here, not true"),
        ({"drawn_on": "both"}, "should be 'auto', 'shown' or 'stored'"),
        ({"spacing": [0]}, "should be greater than 0"),
        ({"spacing": [float("inf")]}, "should be a finite number"),
        ({"spacing": [0.1, 0.1, 0.5]}, "should have at most 2 items"),
        ({"scale": 3}, "reading.mine.scale is not a known parameter"),
    ],
)
def test_how_files_are_read_may_be_said(reading, said):
    values = VALUES | {"reading": {"mine": reading}}
    if said:
        assert said in refusal(values)
    else:
        found = check_params(values).reading["mine"].model_dump()
        assert found == reading | {"classes": {}}


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_an_unknown_key_is_refused_by_name(section):
    key = f"{section}.lerning_rate" if section else "lerning_rate"
    assert refusal(changed(key, 1)).startswith(f"{key} is not a known parameter")


# Younger than files that are in use, and what is meant without them: what was before.
OPTIONAL = {
    "split.folds": None,
    "autoencoder.train.target_dice": 1,
    "autoencoder.train.start_from": None,
    "training.minutes": None,
    "training.start_from": None,
    "training.recipe": "common",
    "training.pretrained": None,
    "training.cuda_graph": True,
    "training.decoder": "exact",
    "evaluation.decoder": "exact",
}


@pytest.mark.parametrize("key", [key for key in (*LEAVES, *SECTIONS) if key not in OPTIONAL])
def test_a_missing_key_is_refused_by_name(key):
    assert refusal(changed(key, remove=True)).startswith(f"{key} is missing")


@pytest.mark.parametrize("key", OPTIONAL)
def test_a_file_of_before_a_key_is_accepted(key):
    found = check_params(changed(key, remove=True)).model_dump()
    for step in key.split("."):
        found = found[step]
    assert found == OPTIONAL[key]


def test_several_seeds_need_a_number_of_epochs():
    values = changed("seeds", [1, 2])
    values["training"] |= {"epochs": None, "minutes": 30}
    assert "training.minutes gives each of several seeds" in refusal(values)
    check_params(values | {"seeds": [1]})


@pytest.mark.parametrize("key", [*LEAVES, *SECTIONS])
@pytest.mark.parametrize("value", [None, [[]], {"a": {"b": 1}}])
def test_a_wrong_type_is_refused_by_name(key, value):
    if value is None and key in MAY_BE_NONE:
        return
    assert refusal(changed(key, value)).startswith(key)


# Of epochs and minutes, one: see test_minutes.py.
MAY_BE_NONE = (
    *("training.epochs", "training.minutes"),
    *("training.start_from", "training.pretrained", "autoencoder.train.start_from"),
    "split.folds",
)

TEXT = {
    "autoencoder.train.start_from",
    "training.start_from",
    "training.pretrained",
    "split.folder",
    "autoencoder.hub",
    "autoencoder.path",
    "autoencoder.sd_vae",
    "model.gms_checkpoint",
}
NOT_TEXT = set(LEAVES) - TEXT


@pytest.mark.parametrize("key", sorted(NOT_TEXT))
def test_a_word_where_a_number_or_a_choice_belongs_is_refused_by_name(key):
    assert refusal(changed(key, "much")).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 1.5),
        ("ablation.epochs", 0),
        ("image_size", 0),
        ("image_size", 8),
        ("image_size", -64),
        ("phantom.images", 0),
        ("phantom.seed", -1),
        ("split.test_fraction", 1),
        ("split.test_fraction", -0.1),
        ("split.validation_fraction", 1.0),
        ("autoencoder.min_mask_dice", 1.1),
        ("autoencoder.train.channels", 0),
        ("autoencoder.train.blocks", 0),
        ("autoencoder.train.steps", 0),
        ("autoencoder.train.batch_size", 0),
        ("autoencoder.train.learning_rate", 0),
        ("training.epochs", 0),
        ("training.batch_size", 0),
        ("training.batch_size", 2.5),
        ("training.learning_rate", 0),
        ("training.learning_rate", -0.002),
        ("training.weight_decay", -0.01),
        ("training.warmup_epochs", -1),
        ("evaluation.threshold", 0),
        ("evaluation.threshold", 1),
        ("evaluation.bootstrap_resamples", 99),
        *((f"training.augmentation.{k}", 1.01) for k in VALUES["training"]["augmentation"]),
        *((f"training.augmentation.{k}", -0.5) for k in VALUES["training"]["augmentation"]),
    ],
)
def test_an_impossible_value_is_refused_by_name_and_shown(key, value):
    message = refusal(changed(key, value))
    assert message.startswith(f"{key}: ") and repr(value) in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "key",
    [
        "split.test_fraction",
        "split.validation_fraction",
        "autoencoder.min_mask_dice",
        "autoencoder.train.learning_rate",
        "training.learning_rate",
        "training.weight_decay",
        "training.augmentation.rotate_90",
        "evaluation.threshold",
        "image_size",
        "seed",
    ],
)
def test_what_is_no_finite_number_is_refused_by_name(key, value):
    assert refusal(changed(key, value)).startswith(f"{key}: ")


@given(st.integers(16, 4096))
def test_the_image_size_is_divisible_by_8(size):
    if size % 8 == 0:
        assert check_params(changed("image_size", size)).image_size == size
    else:
        message = refusal(changed("image_size", size))
        assert message.startswith("image_size: ") and f"{size} is not divisible by 8" in message
        hint = int(message.rsplit(" ", 1)[1])
        assert check_params(changed("image_size", hint)).image_size == hint


@pytest.mark.parametrize("key", ["datasets", "variants"])
def test_lists_of_names(key):
    assert refusal(changed(key, [])).startswith(f"{key}: ")
    assert "twice" in refusal(changed(key, ["busi", "bus", "busi"]))
    assert refusal(changed(key, ["busi", "bus", "busi"])).startswith(f"{key}: ")
    assert refusal(changed(key, "busi")).startswith(f"{key}: ")
    assert refusal(changed(key, ["busi", 3])).startswith(f"{key}.1: ")


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "a\\b", "/etc", "~", "a b", "-rf", "_x", "x\n", "a.b", "ä", "*"],
)
def test_names_that_cannot_be_folders_are_refused(name):
    assert refusal(changed("datasets", ["busi", name])).startswith("datasets.1: a name may hold")
    assert refusal(changed("variants", [name])).startswith("variants.0: a name may hold")
    if "\n" not in name:  # a key is shown as it stands
        by_dataset = changed("training.epochs_by_dataset", {name: 3})
        assert refusal(by_dataset).startswith("training.epochs_by_dataset.")


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True))
def test_safe_names_are_accepted(name):
    assume(name.lower() not in [word.lower() for word in SPECIAL])
    assert check_params(changed("datasets", [name])).datasets == [name]


def test_selecting_on_validation_needs_validation_images():
    values = changed("split.validation_fraction", 0)
    message = refusal(values)
    assert message.startswith("split.validation_fraction is 0")
    assert "training.selection" in message
    values["training"]["selection"] = "best_on_test"
    assert check_params(values).split.validation_fraction == 0


def test_epochs_of_a_dataset():
    training = check_params(VALUES).training
    assert training.epochs_for("ham10000") == 300
    assert training.epochs_for("busi") == 1000
    message = refusal(changed("training.epochs_by_dataset", {"busi": 0}))
    assert message.startswith("training.epochs_by_dataset.busi: ")


def test_the_gms_checkpoint_of_a_dataset():
    model = check_params(VALUES).model
    assert model.gms_checkpoint_for("busi") == Path("models/gms/busi.pth")
    one_for_all = check_params(changed("model.gms_checkpoint", "a/b.pth")).model
    assert one_for_all.gms_checkpoint_for("busi") == Path("a/b.pth")


@pytest.mark.parametrize("values", [None, [], "datasets", 3])
def test_what_is_no_mapping_is_refused(values):
    assert "valid dictionary" in refusal(values)


def test_checked_parameters_cannot_be_changed():
    params = check_params(VALUES)
    with pytest.raises(ValueError, match="frozen"):
        params.training.batch_size = 3


def test_a_file_is_read(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    params = load_params(path)
    assert isinstance(params, Params) and params == check_params(VALUES)
    assert load_params(str(path)) == params


def test_yaml_reads_2e_3_as_text_and_it_is_taken_as_a_number(tmp_path):
    path = tmp_path / "params.yaml"
    text = yaml.safe_dump(VALUES).replace("learning_rate: 0.002", "learning_rate: 2e-3")
    path.write_text(text)
    assert yaml.safe_load(text)["training"]["learning_rate"] == "2e-3"
    assert load_params(path).training.learning_rate == 0.002


@pytest.mark.parametrize("content", [b"a: [1, 2", b"a: b: c", b"\xff\xfe\x00a", b"a: !!python/x 1"])
def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid YAML") as error:
        load_params(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="does not exist") as error:
        load_params(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("")
    with pytest.raises(InputError, match=r"^mine\.yaml: "):
        load_params(path)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"train": "phantom_a", "test": "busi"}, "generalization names busi"),
        ({"train": "bus", "test": "phantom_b"}, "generalization names bus"),
        ({"train": "phantom_a", "test": "phantom_a"}, "generalization has phantom_a on both"),
        ({"train": "phantom_a"}, r"generalization\.0\.test is missing"),
    ],
)
def test_generalization_is_between_two_of_the_datasets(pair, said):
    with pytest.raises(InputError, match=said):
        check_params(VALUES | {"generalization": [pair]})
    assert check_params(VALUES | {"generalization": []}).generalization == []


def test_the_ablation_is_on_one_of_the_datasets():
    with pytest.raises(InputError, match=r"ablation\.datasets names busi"):
        check_params(changed("ablation.datasets", ["busi"]))
    assert check_params(changed("ablation.datasets", ["phantom_b"])).ablation.epochs == 5


def test_an_external_test_set_is_not_trained_on():
    with pytest.raises(InputError, match="external names phantom_b, which is among datasets"):
        check_params(changed("external", ["stu", "phantom_b"]))
    assert check_params(changed("external", ["stu"])).external == ["stu"]


@pytest.mark.parametrize("sizes", [[4], [2, 1], [1, 1, 2], [0, 1], [1, 2.5]])
def test_batch_sizes_of_the_efficiency_ascend(sizes):
    assert refusal(changed("efficiency.batch_sizes", sizes)).startswith("efficiency.batch_sizes")


@pytest.mark.parametrize("seeds", [[], [-1], [2**32], [1.5], [3, 4, 3]])
def test_seeds_are_a_list_of_different_numbers(seeds):
    assert refusal(changed("seeds", seeds)).startswith("seeds")


# What a name may not look like, as some reader of YAML on its way would take it for another thing:
# numbers, dates (one of no calendar), truth values and nothing, of YAML 1.1, 1.2 and Hydra.
SPECIAL = [
    *("2018", "000130", "017", "1_000", "0x1F", "0o17", "0b101", "1e5", "1E5", "12e03"),
    *("2018-01-01", "2018-13-45", "true", "True", "FALSE", "yes", "No", "on", "OFF", "y", "N"),
    *("null", "Null", "NULL", "nan", "NaN", "inf"),
]
PLAIN = ["d2018", "isic-2018", "2018a", "2018_skin", "1-2", "e5", "nano", "none", "3d", "12-34-56"]


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("key", ["datasets", "external", "phantom.datasets", "ablation.datasets"])
def test_names_that_yaml_reads_as_something_else_are_refused(name, key):
    """With quotes and without, so that none waits for the first reader who takes it otherwise."""
    values = [name]
    with contextlib.suppress(ValueError):  # the date of no calendar
        values.append(yaml.safe_load(name))
    for value in values:
        with pytest.raises(
            InputError, match="it cannot be a name: choose another one, such"
        ) as said:
            check_params(changed(key, [value]))
        assert f"{key}.0" in str(said.value)


@pytest.mark.parametrize("name", SPECIAL)
def test_such_a_name_is_refused_where_it_first_appears(name, tmp_path, monkeypatch):
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    before = Path("params.yaml").read_text()
    with pytest.raises(InputError, match=f"^name: '{name}' is a number.*such as d{name}$"):
        add_dataset(name)
    assert Path("params.yaml").read_text() == before and not Path("data").exists()
    assert not Path(f"conf/profile/{name}.yaml").exists()


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_come_through_every_reader(name, tmp_path):
    from dvc.utils.serialize import load_yaml
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert check_params(changed("external", [name])).external == [name]
    path = tmp_path / "params.yaml"
    path.write_text(f"external: [{name}]\n")
    assert load_yaml(path)["external"] == [name] == yaml.safe_load(path.read_text())["external"]
    (override,) = OverridesParser.create().parse_overrides([f"external=[{name}]"])
    assert override.value() == [name]


@pytest.mark.parametrize("key", ["autoencoder.path", "split.folder", "model.gms_checkpoint"])
@pytest.mark.parametrize("value", [2018, 1e5, None, True, datetime.date(2018, 1, 1)])
def test_other_texts_that_yaml_read_as_something_else_say_quotes(key, value):
    with pytest.raises(InputError, match="put it in quotes if it is meant as text") as said:
        check_params(changed(key, value))
    assert key in str(said.value)
