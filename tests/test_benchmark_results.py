"""What is said to be measured has its file, and the index names each file."""

import re

from tests.support.distributed import ROOT

RESULTS = ROOT / "benchmarks" / "results"
NAME = re.compile(r"20\d\d-\d\d-\d\d-[\w-]+\.(?:md|jpg)")


def test_files_that_are_named_exist():
    folders = [ROOT / name for name in ("docs", "neuropbr_dist", "benchmarks", "tests")]
    texts = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [path for path in texts if path.suffix in (".md", ".py")]
    named = {(path.name, name) for path in texts for name in NAME.findall(path.read_text())}
    assert len(named) > 50
    assert not [pair for pair in sorted(named) if not (RESULTS / pair[1]).exists()]


def test_the_index_names_every_file():
    index = (RESULTS / "README.md").read_text()
    assert {path.name for path in RESULTS.glob("20*.md")} <= set(NAME.findall(index))
