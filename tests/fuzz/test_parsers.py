"""Files that are almost right, and those that once failed: each ends in a result or in one sentence."""

from pathlib import Path
from random import Random

import pytest
from fuzz.material import made
from fuzz.mutate import mutant
from fuzz.parsers import PARSERS, Parser, fault

pytestmark = pytest.mark.slow
CORPUS = Path(__file__).parent / "corpus"
DRAWN = 3  # files a parser, of which `make fuzz` tries hundreds


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_any_bytes_end_in_a_result_or_in_one_sentence(parser: Parser) -> None:
    content, random = (made(parser.material) / parser.file).read_bytes(), Random(parser.name)
    parser.read(made(parser.material))  # were it not right before, nothing would be read far
    known = [path.read_bytes() for path in sorted((CORPUS / parser.name).glob("*"))]
    drawn = [mutant(content, parser.file, random) for _ in range(DRAWN)]
    faults = {told for tried in (*known, *drawn) if (told := fault(parser, tried)) is not None}
    assert not faults


def test_the_corpus_names_parsers() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= PARSERS.keys()
