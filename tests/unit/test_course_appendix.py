"""The appendix of the course: a glossary that can be looked up in, and pages that are in the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APPENDIX = ROOT / "docs/course/appendix"
PAGES = sorted(path.name for path in APPENDIX.glob("*.md"))
TERM = re.compile(r"\| \*\*(.+?)\*\* \| (.+) \|")


def terms() -> list[tuple[str, str]]:
    rows = (APPENDIX / "glossary.md").read_text().splitlines()
    return TERM.findall("\n".join(rows))


def test_the_glossary_is_in_alphabetical_order_and_has_each_term_once() -> None:
    names = [re.sub(r"[^a-z0-9 ]", "", name.lower()) for name, _ in terms()]
    assert len(names) > 100
    assert names == sorted(set(names))


def test_a_term_is_explained_in_a_sentence() -> None:
    assert [name for name, sentence in terms() if not sentence.endswith(".") or ". " in sentence] == []


def test_the_words_of_the_sources_are_in_it() -> None:
    virtio = {"driver", "device", "virtqueue", "chain", "available ring", "used ring", "feature negotiation"}
    kvm = {"capability", "memory slot", "exit reason", "PIO", "MMIO", "GSI", "irqfd", "ioeventfd", "irqchip", "kick"}
    assert virtio | kvm <= dict(terms()).keys()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_in_the_site_and_leads_to_pages_that_are_there(page: str) -> None:
    assert f"course/appendix/{page}" in (ROOT / "mkdocs.yml").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", (APPENDIX / page).read_text()):
        assert (APPENDIX / target).exists(), target
