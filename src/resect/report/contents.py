"""What a report of a run says, before it is a page, JSON or Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resect.errors import InputError
from resect.files.reading import read_text
from resect.records import Claim, Results, StudyResult, VerdictWord
from resect.report.attacks import reach_sentence, reached
from resect.report.figures.screen import strip
from resect.report.figures.spec import Drawing
from resect.report.harmless import harmless_sentence
from resect.report.judge import JudgeFile, read_judge
from resect.report.measured import UNKNOWN, Measured
from resect.report.page import Figure, figure_of
from resect.report.shared import beside_others, by_tasks, searched_grid, shared_passes
from resect.report.tables import Table, tables_of
from resect.report.words import SIGNS, effects_of, is_range, quote, slug

# What a reader must know of a run in which nothing was decoded.
FORCED = (
    "Harm and utility are likelihoods in this run: the answers of the sets were given to the "
    "model, the score of one is the geometric mean of the probabilities of its tokens, and no "
    "reply was decoded or judged. Attacks that open a reply have no part in it."
)
# What is put in the place of what where lm-eval measures utility.
FORCED_HARM = ("Harm and utility are likelihoods in this run", "Harm is a likelihood in this run")
# Panels side by side on a wide page; style.css has the same number.
COLUMNS = 3


@dataclass(frozen=True)
class ShownClaim:
    """A claim as a report shows it.

    Attributes:
        claim: The claim.
        id: Of its heading.
        quote: The sentence to quote it by.
        strip: A small picture of its effect among its controls, as SVG; empty for none.
        measured: By which judge its numbers are, as a sentence.
    """

    claim: Claim
    id: str
    quote: str
    strip: str
    measured: str


@dataclass(frozen=True)
class Section:
    """A study as a report shows it.

    Attributes:
        study: What the study found.
        id: Of its heading.
        claims: Its claims.
        tables: Its tables, for readers.
        figures: Its figures, for the page.
        full: Whether the figures leave no room beside them in their last row on a wide page.
    """

    study: StudyResult
    id: str
    claims: tuple[ShownClaim, ...]
    tables: list[Table]
    figures: list[Figure]
    full: bool


@dataclass(frozen=True)
class Contents:
    """All that a report says beside the models' replies.

    Attributes:
        results: The results themselves.
        sections: A section for each study.
        facts: Provenance for readers.
        config: The run's configuration, as YAML; empty if there is none.
        citation: How to cite tool and run, as BibTeX.
        rebuild: Commands that make the run and its report again.
        judge: What is known of the run's judge; None if nothing is.
        measured: Who scored the replies.
        harmless: How often harmless prompts are refused, as a sentence; empty if nobody asked.
    """

    results: Results
    sections: tuple[Section, ...]
    facts: dict[str, object]
    config: str
    citation: str
    rebuild: str
    judge: JudgeFile | None = None
    measured: Measured = UNKNOWN
    harmless: str = ""

    @property
    def claims(self) -> list[ShownClaim]:
        """The claims of all sections."""
        return [claim for section in self.sections for claim in section.claims]

    @property
    def tally(self) -> dict[VerdictWord, int]:
        """How many claims have each verdict that occurs."""
        return tally(shown.claim for shown in self.claims)

    @property
    def notice(self) -> str:
        """What a reader must know before any number, "" for nothing."""
        if self.results.provenance.get("measure") != "likelihood":
            return ""
        marked = by_tasks(self.results.provenance)
        return FORCED.replace(*FORCED_HARM) if marked else FORCED

    @property
    def scored(self) -> str:
        """Who scored the replies, and how variants were asked, in sentences."""
        line = self.measured.line or "It is not recorded which judge scored the replies."
        origin = self.results.provenance
        parts = (
            line,
            by_tasks(origin),
            searched_grid(origin),
            shared_passes(origin),
            beside_others(origin),
            self.harmless,
        )
        return " ".join(filter(None, parts))

    @property
    def recipes(self) -> bool:
        """Whether some claim speaks of the recipe of its models too."""
        return any(shown.claim.recipe is not None for shown in self.claims)

    @property
    def ranges(self) -> bool:
        """Whether the bounds of some number are the smallest and the largest value."""
        return any(is_range(effect) for shown in self.claims for effect in effects_of(shown.claim))


def contents_of(
    run: Path, results: Results, drawn: Sequence[list[Drawing]], measured: Measured
) -> Contents:
    """Return what the report of a run says.

    Args:
        run: Folder of the run.
        results: What it found, in words for what was measured.
        drawn: The drawings of each of its studies.
        measured: Who scored the replies.

    Raises:
        InputError: The run's configuration is not UTF-8, or what is known of its judge is broken.
    """
    shares = reached(run)
    sections = tuple(
        Section(
            study,
            slug(study.study),
            _shown(study, results, measured.of_study(study.study)),
            _tables(study, measured, shares),
            [figure_of(drawing, files=True) for drawing in drawings],
            _fills_rows(drawings),
        )
        for study, drawings in zip(results.studies, drawn, strict=True)
    )
    return Contents(
        results,
        sections,
        _facts(results.provenance),
        _config(run / "config.yaml"),
        _citation(results),
        _rebuild(run, results.provenance),
        read_judge(run),
        measured,
        harmless_sentence(run),
    )


def _tables(study: StudyResult, measured: Measured, shares: Mapping[str, float]) -> list[Table]:
    """Return the tables of a study; those on attacks say how far these reached."""
    asked = {
        str(row["attack"]) for rows in study.tables.values() for row in rows if "attack" in row
    }
    reach = reach_sentence({name: share for name, share in shares.items() if name in asked})
    return [
        replace(table, caption="; ".join(filter(None, (table.caption, reach))))
        for table in tables_of(study, measured)
    ]


def _shown(study: StudyResult, results: Results, measured: Measured) -> tuple[ShownClaim, ...]:
    """Return the claims of a study with what a report says beside them."""
    version = str(results.provenance.get("resect_version", ""))
    judge = measured.name if measured.kind else ""
    return tuple(
        ShownClaim(
            claim,
            f"{slug(study.study)}-{count}",
            quote(claim, results.name, version, judge),
            strip(claim),
            measured.line,
        )
        for count, claim in enumerate(study.claims, 1)
    )


def tally(claims: Iterable[Claim]) -> dict[VerdictWord, int]:
    """Return how many claims have each verdict that occurs."""
    count = Counter(claim.verdict for claim in claims)
    return {word: count[word] for word in SIGNS if count[word]}


def _fills_rows(drawings: Sequence[Drawing]) -> bool:
    used = 0
    for drawing in drawings:
        wide = min(len(drawing.panels), COLUMNS)
        used = wide if used + wide > COLUMNS else used + wide
    return used in (0, COLUMNS)


def _config(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return without_home(read_text(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8", got=str(error)) from error


def without_home(text: str) -> str:
    """Return text with the home folder as `~`: reports are sent around."""
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if home != "/" else text


def _facts(provenance: Mapping[str, object]) -> dict[str, object]:
    """Return provenance for readers: without home folders, data files by their last parts."""
    facts = dict(provenance)
    data = facts.get("data")
    if isinstance(data, dict):
        facts["data"] = {"/".join(Path(path).parts[-3:]): digest for path, digest in data.items()}
    facts.pop("rebuild", None)
    return {
        key: without_home(value) if isinstance(value, str) else value
        for key, value in facts.items()
    }


def _rebuild(run: Path, provenance: Mapping[str, object]) -> str:
    """Return the commands that make the run and its report again, with what they were made with."""
    folder = shlex.quote(run.resolve().name)
    notes = [f"resect {provenance.get('resect_version', 'of unknown version')}"]
    if provenance.get("git_commit"):
        dirty = ", with changes that are not committed" if provenance.get("git_dirty") else ""
        notes.append(f"commit {str(provenance['git_commit'])[:12]}{dirty}")
    if provenance.get("command"):
        notes.append(f"first run as: {without_home(str(provenance['command']))}")
    return "\n".join(
        (
            f"# {'; '.join(notes)}",
            f"resect reproduce {folder} -o {folder}-again",
            f"resect study run {folder}/config.yaml -o {folder}-anew",
            f"resect report {folder}",
        )
    )


def _citation(results: Results) -> str:
    provenance = results.provenance
    year = str(provenance.get("finished", ""))[:4]
    notes = [f"run “{results.name}”", f"configuration {provenance.get('config', 'unknown')}"]
    if provenance.get("git_commit"):
        notes.append(f"commit {str(provenance['git_commit'])[:12]}")
    return (
        "@software{resect,\n"
        "  title = {resect: causal weight surgery on language models},\n"
        f"  version = {{{provenance.get('resect_version', 'unknown')}}},\n"
        f"  year = {{{year if year.isdigit() else 'unknown'}}},\n"
        f"  note = {{{', '.join(notes)}}},\n"
        "}"
    )
