"""Evaluate one model, intact and cut: what `resect eval` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from resect import files
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import cut_record, forced_of
from resect.edit.layouts import in_model
from resect.errors import InputError
from resect.evaluation.agreement import agreement_rows
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.coherence import floor_for
from resect.evaluation.corrected import (
    ASSUMED,
    BY_ERROR,
    Corrected,
    corrected_rows,
    judge_error_rows,
)
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.differences import SETS
from resect.evaluation.divergence import Intact
from resect.evaluation.engine import ask_engine, is_engine, parse_engine
from resect.evaluation.judges import find_judge
from resect.evaluation.judging import (
    Answer,
    Row,
    answers_of,
    judge_answers,
    read_replies,
    write_asked,
    write_judged,
)
from resect.evaluation.labels import Labels, read_labels
from resect.evaluation.probes import find_probe
from resect.evaluation.rates import Rate, notes_of, probes_of, summarise
from resect.evaluation.served import Asking, ask_server, parse_backend, served_model
from resect.evaluation.uniform import beyond_uniform
from resect.files.reading import refuse_links_out
from resect.model import (
    LoadedModel,
    load_model,
    model_fingerprint,
    prunable_tensors,
    tokenizer_fingerprint,
)
from resect.model.load import load_tokenizer
from resect.records import LEFT_OUT_BY_DEFAULT, DecodingMode, Format, Reply
from resect.weights.fit import Prints, all_forced, fitted, forced_in
from resect.weights.mask import Mask


@dataclass(frozen=True)
class EvalRequest:
    """The options of `resect eval`; see its help."""

    model: str
    probes: tuple[str, ...]
    data: tuple[str, ...]
    mask: Path | None = None
    attack: str = "none"
    attack_data: tuple[str, ...] = ()
    judges: tuple[str, ...] = ("exact",)
    format: Format = "chat"
    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 16
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    window: int | None = None
    stride: int | None = None
    data_dir: Path | None = None
    backend: str = "hf"
    allow_remote: bool = False
    force: bool = False
    coherence: str | None = None
    labels: tuple[Path, ...] | None = None
    decoding: DecodingMode = field(default="fast", metadata=LEFT_OUT_BY_DEFAULT)


PARTIAL = "an attack on all of them might bring out more"


@dataclass(frozen=True)
class Evaluation:
    """What was measured, for the terminal and for `results.json`.

    Attributes:
        rates: A row for each judge, probe and variant.
        agreement: A row for each variant, probe and pair of judges.
        notes: What a reader of the rates must know, in sentences.
        judge_errors: How the fitted judges err, by category.
        corrected: Rates corrected for that, or by labels of some of the replies.
    """

    rates: list[Rate]
    agreement: list[Row]
    notes: list[str] = field(default_factory=list)
    judge_errors: list[Row] = field(default_factory=list)
    corrected: list[Corrected] = field(default_factory=list)

    def as_record(self) -> dict[str, object]:
        """Return it for `results.json`; what is known of fitted judges alone only if there are."""
        later = ("judge_errors", "corrected")
        return {key: value for key, value in asdict(self).items() if value or key not in later}


@dataclass(frozen=True)
class Judging:
    """How replies are judged.

    Attributes:
        judges: Names of the judges.
        coherence: The floor of coherence, as `evaluation.coherence` reads it; None leaves it to the
            judge.
        labels: Labels of some of the replies, to correct rates with.
    """

    judges: tuple[str, ...]
    coherence: str | None = None
    labels: Labels | None = None


def read_judging(
    judges: Sequence[str], coherence: str | None, labels: Sequence[Path] | None
) -> Judging:
    """Check how replies shall be judged, before anything is asked.

    Raises:
        InputError: A judge or the floor cannot be used as given, or labels cannot be read.
    """
    for name in judges:
        find_judge(name)
        floor_for(name, coherence)
    if len(set(judges)) < max(1, len(judges)):
        raise InputError(
            "judges must be named, each once", got=", ".join(judges), allowed="--judge exact ..."
        )
    return Judging(tuple(judges), coherence, read_labels(labels) if labels else None)


def evaluate_model(
    request: EvalRequest,
    output: Path,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    loaded: LoadedModel | None = None,
) -> Evaluation:
    """Ask, store, judge and summarise.

    Args:
        request: What to ask whom; one set for each probe.
        output: New folder; gets `records/*.parquet` and `results.json`.
        on_progress: Called with variants done and variants in all.
        loaded: The model of the request, if it is in memory already.

    Raises:
        InputError: Something in the request cannot be used as given.
    """
    files.refuse_full_folder(output)
    judging = read_judging(request.judges, request.coherence, request.labels)
    settings = _settings(request)
    probes = probe_sets(request)
    attack_data = _attack_sets(request, settings.attack)
    if request.backend != "hf":
        asking = Asking(load_tokenizer(request.model), probes, settings, attack_data)
        evaluate = _evaluate_engine if is_engine(request.backend) else _evaluate_served
        return evaluate(request, output, asking, judging)
    mask = None if request.mask is None else Mask.load(request.mask)
    loaded = loaded or load_model(request.model)
    prints = Prints(model_fingerprint(loaded.model), tokenizer_fingerprint(loaded.tokenizer))
    variants: dict[str, Mask | None] = {"intact": None}
    if mask is not None:
        mask = in_model(mask, loaded.model)
        mask = fitted(mask, prunable_tensors(loaded.model), prints, force=request.force)
        variants["cut"] = mask
    replies: dict[str, list[Reply]] = {}
    attacks: dict[str, Mapping[str, object]] = {}
    put = partial(ask, loaded, probes, settings, attack_data=attack_data, intact=Intact())
    with files.atomic_folder(output) as folder:
        for done, (name, variant) in enumerate(variants.items()):
            if on_progress is not None:
                on_progress(done, len(variants))
            replies[name] = put(variant, on_attack=partial(attacks.__setitem__, name))
        provenance = _provenance(request, probes) | {
            "model_fingerprint": prints.model,
            "tokenizer_fingerprint": prints.tokenizer,
            "model_cut": cut_record(request.model),
            "vocabulary": loaded.model.config.get_text_config().vocab_size,
            "mask": None if mask is None else _mask_record(mask),
            "forced": all_forced(
                forced_of(request.model), forced_in({} if mask is None else mask.meta)
            ),
            "attacks": attacks,
        }
        return _judge_all(folder, replies, judging, provenance)


def _provenance(request: EvalRequest, probes: Mapping[str, BehaviourSet]) -> Row:
    """Return what was asked of which model, with which software and data."""
    return files.provenance() | {
        "model": request.model,
        "data": {name: probe.hash for name, probe in probes.items()},
        "request": files.plain(request),
    }


def _settings(request: EvalRequest) -> EvaluationSettings:
    return EvaluationSettings(
        format=request.format,
        attack=parse_attack(request.attack),
        generation=_decoding(request),
        window=request.window,
        stride=request.stride,
    )


def _evaluate_served(
    request: EvalRequest, output: Path, asking: Asking, judging: Judging
) -> Evaluation:
    """Evaluate what a server serves; `request.model` names its tokenizer."""
    if request.mask is not None:
        raise InputError(
            "a served model cannot be cut from here",
            got=str(request.mask),
            fix="let --backend vllm start an engine, or serve what resect prune writes",
        )
    server = parse_backend(request.backend, allow_remote=request.allow_remote)
    with files.atomic_folder(output) as folder:
        replies = {"intact": ask_server(server, asking)}
        provenance = _provenance(request, asking.probes) | {"served": served_model(server)}
        return _judge_all(folder, replies, judging, provenance)


def _evaluate_engine(
    request: EvalRequest, output: Path, asking: Asking, judging: Judging
) -> Evaluation:
    """Evaluate a checkpoint, intact and cut, in an engine that is started for that."""
    backend = parse_engine(request.backend)
    mask = None if request.mask is None else Mask.load(request.mask)
    with files.atomic_folder(output) as folder:
        asked = ask_engine(backend, request.model, asking, mask, force=request.force)
        provenance = _provenance(request, asking.probes) | {
            "engine": asked.engine,
            "tokenizer_fingerprint": tokenizer_fingerprint(asking.tokenizer),
            "model_cut": cut_record(request.model),
            "mask": None if asked.cut is None else _mask_record(asked.cut),
            "forced": forced_of(request.model) if asked.cut is None else forced_in(asked.cut.meta),
        }
        return _judge_all(folder, asked.replies, judging, provenance)


def _mask_record(mask: Mask) -> Row:
    return {"hash": mask.hash, "weights": mask.count, "origin": dict(mask.meta)}


def rejudge(
    source: Path,
    judges: tuple[str, ...],
    output: Path,
    *,
    coherence: str | None = None,
    labels: Sequence[Path] | None = None,
) -> Evaluation:
    """Judge the stored replies of an earlier evaluation again; no evaluated model is loaded.

    Args:
        source: Folder that `evaluate_model` wrote.
        judges: Names of the judges.
        output: New folder of the same kind; the old one is left alone.
        coherence: The floor of coherence; None leaves it to the judge.
        labels: Files with labels of some of the replies.

    Raises:
        InputError: The folder holds no evaluation, or a judge is unknown.
    """
    files.refuse_full_folder(output)
    judging = read_judging(judges, coherence, labels)
    refuse_links_out(source)
    if (source / SETS).is_file():
        names = sorted(path.parent.name for path in source.glob("*/results.json"))
        raise InputError(
            f"{source} holds evaluations of several sets",
            got=", ".join(names),
            fix=f"judge them one by one: --rejudge {source}/{names[0] if names else 'NAME'}",
        )
    results = files.read_json(source / "results.json")
    paths = {name: source / "records" / f"{name}.parquet" for name in ("intact", "cut")}
    replies = {name: read_replies(path) for name, path in paths.items() if path.exists()}
    if "intact" not in replies:
        raise InputError(f"{source} holds no replies", allowed="a folder that resect eval wrote")
    with files.expecting(source / "results.json", "result"):
        history = {"rejudged": {"source": str(source), "judges": judges}}
        provenance = {**results["provenance"], **history}
    with files.atomic_folder(output) as folder:
        return _judge_all(folder, replies, judging, provenance)


def _judge_all(
    folder: Path,
    replies: Mapping[str, list[Reply]],
    judging: Judging,
    provenance: Mapping[str, object],
) -> Evaluation:
    """Store replies, judge them, store the judgements, summarise and correct.

    Probes that are not for the configured judge stand under the first one alone.
    """
    paths = {variant: folder / "records" / f"{variant}.parquet" for variant in replies}
    answers = {variant: answers_of(said) for variant, said in replies.items()}
    for variant, path in paths.items():
        write_asked(path, variant, answers[variant])
    judged: dict[str, dict[str, list[Answer]]] = {}
    for number, judge in enumerate(judging.judges):
        judged[judge] = {
            variant: judge_answers(
                [a for a in unjudged if number == 0 or a.probe.judged == "configured"],
                judge,
                judging.coherence,
            )
            for variant, unjudged in answers.items()
        }
    for variant, path in paths.items():
        write_judged(path, variant, [judged[judge][variant] for judge in judging.judges])
    rates = [row for judge in judging.judges for row in summarise(judge, judged[judge])]
    corrected = [
        row
        for judge in judging.judges
        for row in corrected_rows(judge, judged[judge], judging.labels)
    ]
    notes = [*notes_of(rates), *_destroyed(replies, provenance), *_reached(provenance)]
    notes += [ASSUMED] if any(row["method"] == BY_ERROR for row in corrected) else []
    errors = judge_error_rows(judging.judges)
    evaluation = Evaluation(rates, _agreement(judged), notes, errors, corrected)
    files.write_json(folder / "results.json", evaluation.as_record() | {"provenance": provenance})
    return evaluation


def _destroyed(
    replies: Mapping[str, list[Reply]], provenance: Mapping[str, object]
) -> tuple[str, ...]:
    """Return a line for each destroyed variant; none where the vocabulary is not known."""
    size = provenance.get("vocabulary")
    return beyond_uniform(replies, size) if isinstance(size, int) and size > 0 else ()


def _reached(provenance: Mapping[str, object]) -> list[str]:
    """Return which share of the prunable weights an attack with adapters reached, by variant."""
    attacks = provenance.get("attacks")
    lines = []
    for variant, facts in attacks.items() if isinstance(attacks, Mapping) else ():
        share = facts.get("adapted_share")
        if isinstance(share, int | float):
            line = (
                f"{variant}: the attack put adapters on {100 * share:.3g} % of the prunable weights"
            )
            lines.append(line + (f", and {PARTIAL}" if share < 1 else ""))
    return lines


def _agreement(judged: Mapping[str, Mapping[str, list[Answer]]]) -> list[Row]:
    """Compare the judges by variant and probe, on what the configured judge judges.

    Args:
        judged: Judge to variant to its answers.
    """
    rows: list[Row] = []
    for variant, answers in next(iter(judged.values())).items():
        for probe in probes_of(answers):
            if probe.judged != "configured":
                continue
            by_judge = {
                judge: [a.judgement for a in variants[variant] if a.probe == probe]
                for judge, variants in judged.items()
            }
            labels: Row = {"probe": probe.name, "variant": variant}
            rows += [labels | row for row in agreement_rows(by_judge)]
    return rows


def _attack_sets(request: EvalRequest, attack: AttackSettings) -> dict[str, BehaviourSet]:
    """Read `ROLE=SPEC`; a bare SPEC is the target."""
    sets: dict[str, BehaviourSet] = {}
    for entry in request.attack_data:
        role, equals, spec = entry.partition("=")
        if not equals or "#" in role:  # which says what columns mean
            role, spec = "target", entry
        if role not in attack.roles:
            raise InputError(
                "the attack has no use for these data",
                got=entry,
                allowed=", ".join(f"{name}=SPEC" for name in attack.roles) or "none",
            )
        sets[role] = load_data(spec, data_dir=request.data_dir)
    return sets


def _decoding(request: EvalRequest) -> GenerationSettings:
    """Return how replies are decoded.

    Raises:
        InputError: Several samples of greedy replies, which would all be the same.
    """
    if request.samples > 1 and request.temperature <= 0:
        raise InputError(
            "greedy replies do not differ",
            got=f"{request.samples} samples at temperature {request.temperature:g}",
            fix="give --temperature above 0, or one sample",
        )
    return GenerationSettings(
        request.max_new_tokens,
        request.batch_size,
        request.temperature,
        request.samples,
        request.seed,
        request.decoding,
    )


def specs_of(request: EvalRequest) -> dict[str, list[str]]:
    """Return the SPECs of each probe: those of `PROBE=SPEC`, or else the bare ones."""
    specs: dict[str, list[str]] = {}
    for entry in request.data:
        name, equals, spec = entry.partition("=")
        if equals and name in request.probes:
            specs.setdefault(name, []).append(spec)
        else:
            specs.setdefault("", []).append(entry)
    return {name: specs.get(name) or specs.get("", []) for name in request.probes}


def probe_sets(request: EvalRequest) -> dict[str, BehaviourSet]:
    """Pair probes with data, one set each.

    Raises:
        InputError: A probe is unknown, has no set or several, or a set cannot be read.
    """
    specs = specs_of(request)
    probes: dict[str, BehaviourSet] = {}
    for name in request.probes:
        find_probe(name)
        if len(specs[name]) > 1:
            raise InputError(
                f"several sets for the probe {name!r}",
                got=", ".join(specs[name]),
                fix="evaluate each by itself: resect.evaluation.sets.evaluate_sets",
            )
        if not specs[name]:
            raise InputError(
                f"no data for the probe {name!r}",
                got=", ".join(request.data) or "nothing",
                allowed="--data SPEC for all probes, or --data PROBE=SPEC",
            )
        data = load_data(
            specs[name][0],
            data_dir=request.data_dir,
            prompts_only=not _reads_answers(name, request),
            lines=name != "perplexity",
        )
        _refuse_unjudgeable(name, data, request)
        probes[name] = data.split("evaluation").limit(request.limit)
    return probes


def _reads_answers(probe: str, request: EvalRequest) -> bool:
    """Return whether the answers of a probe's rows are scored, or open its replies."""
    attack = parse_attack(request.attack)
    opened = attack.name != "none" and attack.phrase is None
    return not find_probe(probe).decoded or (
        opened and attack.opens(probe, default=find_probe(probe).attacked)
    )


def _refuse_unjudgeable(probe: str, data: BehaviourSet, request: EvalRequest) -> None:
    """Refuse rows that give the exact judge nothing to compare a reply with.

    Raises:
        InputError: A row has neither an answer nor a key, and no other judge is asked.
    """
    by = find_probe(probe).judged
    if not find_probe(probe).decoded or (by == "configured" and request.judges != ("exact",)):
        return
    for number, example in enumerate(data.examples, start=1):
        if not (example.key or example.completion):
            raise InputError(
                f"{data.source} row {number} has neither 'completion' nor 'key'",
                got=f"the exact judge for the probe {probe!r}",
                allowed="something to compare a reply with",
                fix="give keys, another --judge for generation and refusal, or the model's own "
                "answers: resect data collect",
            )
