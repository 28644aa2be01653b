import ast
from pathlib import Path

import pytest

from bertmon.config import DocstringsConfig
from bertmon.data import docstrings, load_corpus
from bertmon.errors import InputError


def small_docstrings(**changes):
    return DocstringsConfig(
        **({"packages": ["sklearn", "matplotlib"], "train_per_package": 20, "test_per_package": 5} | changes)
    )


def write_package(folder, name, docstrings):
    """Write a package that has one function per docstring."""
    (folder / name / "tests").mkdir(parents=True)
    functions = [f'def f{number}():\n    r"""{text}"""\n' for number, text in enumerate(docstrings)]
    (folder / name / "__init__.py").write_text("\n".join(functions), encoding="utf-8")
    (folder / name / "tests" / "ignored.py").write_text(f'"""{"ignored " * 30}"""')
    (folder / name / "python4.py").write_text("this is not Python")


@pytest.fixture
def two_packages(tmp_path, monkeypatch):
    filler = "and so on and so forth, a sentence that is long enough to count as a real docstring of twenty words"
    write_package(
        tmp_path, "seaside", [f"seaside number {n}: Seaside.wave and skyward_x, {filler}" for n in range(8)] + ["short"]
    )
    write_package(
        tmp_path, "skyward", [f"skyward number {n}: {filler}" for n in range(8)] + [f"seaside number 0: {filler}"]
    )
    monkeypatch.syspath_prepend(tmp_path)
    return DocstringsConfig(packages=["seaside", "skyward"], train_per_package=5, test_per_package=2)


def test_docstrings_read_twice_are_equal_balanced_and_disjoint(tmp_path):
    first = load_corpus(small_docstrings(), tmp_path / "one")
    again = load_corpus(small_docstrings(), tmp_path / "one")
    elsewhere = load_corpus(small_docstrings(), tmp_path / "two")
    assert first == again == elsewhere
    assert first.fingerprint() == again.fingerprint() == elsewhere.fingerprint()
    assert first.label_names == ("sklearn", "matplotlib")
    assert [first.train.labels.count(label) for label in (0, 1)] == [20, 20]
    assert [first.test.labels.count(label) for label in (0, 1)] == [5, 5]
    assert first.majority_share() == 0.5
    texts = first.train.texts + first.test.texts
    assert len(set(texts)) == len(texts)
    other = load_corpus(small_docstrings(train_per_package=21), tmp_path / "one")
    assert other.fingerprint() != first.fingerprint()


def test_package_names_in_docstrings_are_masked(two_packages, tmp_path):
    corpus = load_corpus(two_packages, tmp_path / "cache")
    texts = corpus.train.texts + corpus.test.texts
    assert len(texts) == 14
    assert not any("seaside" in text.lower() or "skyward" in text.lower() for text in texts)
    assert any("_.wave and __x" in text for text in texts)
    assert not any("ignored" in text or text == "short" for text in texts)


def test_docstrings_of_a_changed_package_are_read_again(two_packages, tmp_path):
    before = load_corpus(two_packages, tmp_path / "cache")
    source = tmp_path / "skyward" / "__init__.py"
    source.write_text(source.read_text().replace("number", "figure"))
    assert load_corpus(two_packages, tmp_path / "cache") != before


def test_mask_of_packages_covers_distributions_and_abbreviations():
    mask = docstrings._mask(["sklearn", "numpy", "torch"])
    masked = mask.sub("_", "import numpy as np; scikit-learn, PyTorch's torch.nn, sklearn, input_np, stop snpx")
    assert masked == "import _ as _; _, _'s _.nn, _, input__, stop snpx"


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (["numpy", "no_such_package"], "expected installed packages, got no_such_package"),
        (["numpy", "../etc"], r"expected installed packages, got \.\./etc"),
        (["numpy", "math"], "expected installed packages, got math"),
        (["numpy", "iniconfig"], r"expected packages with 130 docstrings of .*, got iniconfig with \d+"),
    ],
)
def test_docstrings_of_unusable_packages_are_refused(packages, message, tmp_path):
    with pytest.raises(InputError, match=f"data.packages: {message}"):
        load_corpus(DocstringsConfig(packages=packages, train_per_package=30), tmp_path)


def test_docstring_nodes_of_any_source_equal_ast_walk():
    source = """
class A:
    async def b(self):
        def c(): ...
        if x:
            for _ in y:
                with z:
                    def d(): ...
        elif w:
            def e(): ...
        else:
            while v:
                def f(): ...
            else:
                def g(): ...
try:
    def h(): ...
except E:
    def i(): ...
else:
    def j(): ...
finally:
    def k(): ...
match m:
    case 1:
        def n(): ...
try:
    pass
except* E:
    def o(): return lambda: 1
"""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for tree in (
        ast.parse(source),
        *(ast.parse(path.read_text()) for path in Path(ast.__file__).parent.glob("[a-c]*.py")),
    ):
        nodes = list(docstrings._docstring_nodes(tree))
        assert set(nodes) == {node for node in ast.walk(tree) if isinstance(node, kinds)}
        assert len(nodes) == len(set(nodes))
