import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bertmon.launch.run_names import NEVER_IN_NAME, quote_override, setting_dir_name, setting_overrides

CASES = [  # overrides of the run, excluded keys, the name
    (["schedule.warmup_frac=0.1"], [], "warmup_frac=0.1"),
    (["schedule.warmup_frac=0.1", "train.epochs=2", "seed=3"], ["train.epochs"], "warmup_frac=0.1"),
    (["schedule.warmup_frac=0.1", "train.epochs=2", "seed=3"], [], "warmup_frac=0.1,epochs=2"),
    (["seed=3"], [], "quickstart"),
    ([], [], "quickstart"),
    (["experiment=article"], NEVER_IN_NAME, "quickstart"),
    (["train.epochs=2", "resume=multirun/x"], NEVER_IN_NAME, "epochs=2"),
    (["experiment=article"], [], "experiment=article"),
    (["model=bert_base", "model.name=x"], [], "model=bert_base,name=x"),
    (["data.name=a", "model.name=b"], [], "data.name=a,model.name=b"),
    (["++train.max_grad_norm=null", "~monitor"], [], "max_grad_norm=null"),
]


@pytest.mark.parametrize(("overrides", "excluded", "name"), CASES)
def test_setting_dir_name_has_the_overrides_of_the_run(overrides, excluded, name):
    assert setting_dir_name(overrides, excluded, "quickstart") == name


def test_setting_dir_name_shortens_paths_and_stays_unique():
    names = [
        setting_dir_name([f"data.train={path}"], [], "x")
        for path in ("/a/b/reviews.csv", "/c/reviews.csv", "'/a b/reviews.csv'")
    ]
    assert all(name.startswith("train=reviews.csv-") and len(name) == 24 for name in names)
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "value", ["../../etc/passwd", "/root/x.csv", "[a,b]", "x" * 400, "..", "a\nb", "☃/é", ".", "汉" * 200, "/", "a/"]
)
def test_setting_dir_name_is_a_valid_and_unique_file_name(value):
    name = setting_dir_name([f"data.train={value}"], [], "quickstart")
    assert "/" not in name
    assert "\n" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) < 255
    assert name != setting_dir_name([f"data.train={value}-"], [], "quickstart")


def test_setting_overrides_leaves_out_seed_and_excluded_keys():
    overrides = ["optimizer.lr=1e-3", "seed=1", "train.epochs=2", "~monitor"]
    assert setting_overrides(overrides, ["train.epochs"]) == {"optimizer.lr": "1e-3"}


@pytest.mark.parametrize(
    "folder", ["multirun/1", "a,b", "it's", "a b=c", "${x}", "back\\slash", "a\\'b", "end\\", "汉字", "a[1]", "é"]
)
def test_quote_override_is_unchanged_by_hydras_parser(folder):
    (override,) = OverridesParser.create().parse_overrides([f"resume={quote_override(folder)}"])
    assert (override.value(), override.is_sweep_override()) == (folder, False)


@pytest.mark.parametrize(
    "text", ["2026_11", "1e3", "true", "Null", "0.50", ".5", "-1", "inf", "nan", ".", "..", "1/2", "1-2", ""]
)
def test_quote_override_of_what_looks_like_another_type_is_a_string(text):
    assert OverridesParser.create().parse_override(f"resume={quote_override(text)}").value() == text
