import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bertmon.launch.run_dirs import quote_override, setting_dir_name

CASES = [  # overrides of the run, keys that are swept, the name
    (["schedule.warmup_frac=0.1"], ["schedule.warmup_frac"], "warmup_frac=0.1"),
    (["schedule.warmup_frac=0.1", "train.epochs=2", "seed=3"], ["schedule.warmup_frac", "seed"], "warmup_frac=0.1"),
    (["schedule.warmup_frac=0.1", "train.epochs=2", "seed=3"], None, "warmup_frac=0.1,epochs=2"),
    (["seed=3"], ["seed"], "quickstart"),
    ([], None, "quickstart"),
    (["experiment=article"], None, "quickstart"),
    (["train.epochs=2", "resume=multirun/x"], None, "epochs=2"),
    (["experiment=article"], ["experiment"], "experiment=article"),
    (["model=bert_base", "model.name=x"], None, "model=bert_base,name=x"),
    (["data.name=a", "model.name=b"], None, "data.name=a,model.name=b"),
    (["++train.max_grad_norm=null", "~monitor"], None, "clip=null"),
]


@pytest.mark.parametrize(("overrides", "swept", "name"), CASES)
def test_a_folder_is_named_by_what_differs(overrides, swept, name):
    assert setting_dir_name(overrides, swept, "quickstart") == name


@pytest.mark.parametrize(
    "value", ["../../etc/passwd", "/root/x.csv", "[a,b]", "x" * 400, "..", "a\nb", "☃/é", ".", "汉" * 200]
)
def test_a_value_never_leaves_its_folder_nor_meets_another(value):
    name = setting_dir_name([f"data.train={value}"], None, "quickstart")
    assert "/" not in name
    assert "\n" not in name
    assert name not in ("", ".", "..")
    assert len(name.encode()) < 255
    assert name != setting_dir_name([f"data.train={value}-"], None, "quickstart")


@pytest.mark.parametrize("folder", ["multirun/1", "a,b", "it's", "a b=c", "${x}", "back\\slash", "a\\'b", "end\\"])
def test_a_folder_comes_through_hydras_parser_as_it_is(folder):
    (override,) = OverridesParser.create().parse_overrides([f"resume={quote_override(folder)}"])
    assert (override.value(), override.is_sweep_override()) == (folder, False)
