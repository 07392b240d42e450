"""Evaluate one model, intact and cut: what `resect eval` calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resect import files
from resect.data.load import BehaviourSet, load_data
from resect.edit.checkpoint import cut_record, forced_of
from resect.errors import InputError
from resect.evaluation.agreement import agreement_rows
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings, parse_attack
from resect.evaluation.decode import GenerationSettings, distinct
from resect.evaluation.judges import find_judge
from resect.evaluation.judging import judge_replies, reply_of, rows_of
from resect.evaluation.probes import find_probe
from resect.evaluation.served import ask_server, parse_backend, served_model
from resect.files.reading import refuse_links_out
from resect.model import load_model, model_fingerprint, prunable_tensors, tokenizer_fingerprint
from resect.model.load import load_tokenizer
from resect.records import Format, Judgement, Reply
from resect.stats import Resampler, cluster_means, ratio, relative_drop
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


@dataclass(frozen=True)
class Evaluation:
    """What was measured, for the terminal and for `results.json`.

    Attributes:
        rates: A row for each judge, probe and variant: rate, 95 % interval, scored and unscored
            replies, and for the cut variant its relative drop against the intact model.
        agreement: A row for each variant, probe and pair of judges.
    """

    rates: list[dict[str, Any]]
    agreement: list[dict[str, Any]]


def evaluate_model(
    request: EvalRequest, output: Path, on_progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Ask, store, judge and summarise.

    Args:
        request: What to ask whom.
        output: New folder; gets `records/*.parquet` and `results.json`.
        on_progress: Called with variants done and variants in all.

    Raises:
        InputError: Something in the request cannot be used as given.
    """
    files.refuse_full_folder(output)
    _check_judges(request.judges)
    settings = _settings(request)
    probes = _probe_sets(request)
    attack_data = _attack_sets(request, settings.attack)
    if request.backend != "hf":
        return _evaluate_served(request, output, settings, probes)
    mask = None if request.mask is None else Mask.load(request.mask)
    model, tokenizer = load_model(request.model)
    prints = Prints(model_fingerprint(model), tokenizer_fingerprint(tokenizer))
    variants: dict[str, Mask | None] = {"intact": None}
    if mask is not None:
        mask = fitted(mask, prunable_tensors(model), prints, force=request.force)
        variants["cut"] = mask
    replies: dict[str, list[Reply]] = {}
    attacks: dict[str, Mapping[str, Any]] = {}
    with files.atomic_folder(output) as folder:
        for done, (name, removed) in enumerate(variants.items()):
            if on_progress is not None:
                on_progress(done, len(variants))
            replies[name] = ask(
                model,
                tokenizer,
                probes,
                settings,
                removed,
                attack_data=attack_data,
                on_attack=lambda facts, name=name: attacks.update({name: facts}),  # type: ignore[misc]
            )
        facts = files.provenance() | {
            "model": request.model,
            "model_fingerprint": prints.model,
            "tokenizer_fingerprint": prints.tokenizer,
            "model_cut": cut_record(request.model),
            "mask": None if mask is None else _mask_facts(mask),
            "forced": all_forced(
                forced_of(request.model), forced_in({} if mask is None else mask.meta)
            ),
            "data": {name: probe.hash for name, probe in probes.items()},
            "attacks": attacks,
            "request": asdict(request),
        }
        return _judge_all(folder, replies, request.judges, settings, facts)


def _settings(request: EvalRequest) -> EvaluationSettings:
    return EvaluationSettings(
        format=request.format,
        attack=parse_attack(request.attack),
        generation=_decoding(request),
        window=request.window,
        stride=request.stride,
    )


def _evaluate_served(
    request: EvalRequest,
    output: Path,
    settings: EvaluationSettings,
    probes: Mapping[str, BehaviourSet],
) -> Evaluation:
    """Evaluate what a server serves; `request.model` names its tokenizer."""
    if request.mask is not None:
        raise InputError(
            "a served model cannot be cut from here",
            got=str(request.mask),
            fix="write the cut model with resect prune, serve that folder and evaluate it apart",
        )
    server = parse_backend(request.backend, allow_remote=request.allow_remote)
    with files.atomic_folder(output) as folder:
        replies = {"intact": ask_server(server, load_tokenizer(request.model), probes, settings)}
        facts = files.provenance() | {
            "model": request.model,
            "served": served_model(server),
            "data": {name: probe.hash for name, probe in probes.items()},
            "request": asdict(request),
        }
        return _judge_all(folder, replies, request.judges, settings, facts)


def _mask_facts(mask: Mask) -> dict[str, Any]:
    return {"hash": mask.hash, "weights": mask.count, "origin": dict(mask.meta)}


def rejudge(source: Path, judges: tuple[str, ...], output: Path) -> Evaluation:
    """Judge the stored replies of an earlier evaluation again; no evaluated model is loaded.

    Args:
        source: Folder that `evaluate_model` wrote.
        judges: Names of the judges.
        output: New folder of the same kind; the old one is left alone.

    Raises:
        InputError: The folder holds no evaluation, or a judge is unknown.
    """
    files.refuse_full_folder(output)
    _check_judges(judges)
    refuse_links_out(source)
    known = files.read_json(source / "results.json")
    replies: dict[str, list[Reply]] = {}
    for name in ("intact", "cut"):
        path = source / "records" / f"{name}.parquet"
        if path.exists():
            with files.expecting(path, "record"):
                rows = [row for row in files.read_parquet(path) if row["judge_at"] == 0]
                replies[name] = [reply_of(row) for row in rows]
    if "intact" not in replies:
        raise InputError(f"{source} holds no replies", allowed="a folder that resect eval wrote")
    with files.expecting(source / "results.json", "result"):
        facts = {**known["provenance"], "rejudged": {"source": str(source), "judges": judges}}
    with files.atomic_folder(output) as folder:
        return _judge_all(folder, replies, judges, EvaluationSettings(), facts)


def _check_judges(judges: Sequence[str]) -> None:
    for name in judges:
        find_judge(name)
    if len(set(judges)) < max(1, len(judges)):
        raise InputError(
            "judges must be named, each once", got=", ".join(judges), allowed="--judge exact ..."
        )


def _judge_all(
    folder: Path,
    replies: dict[str, list[Reply]],
    judges: Sequence[str],
    settings: EvaluationSettings,
    facts: dict[str, Any],
) -> Evaluation:
    """Store replies, judge them, store verdicts and summarise.

    A record file holds a row for each reply and judge; `judge_at` numbers the judges. Probes that
    are not for the configured judge stand under the first one alone.
    """
    for name, found in replies.items():
        rows = [{"variant": name, "judge_at": 0} | row for row in rows_of(found, None)]
        files.write_parquet(folder / "records" / f"{name}.parquet", rows)
    rates: list[dict[str, Any]] = []
    judged: dict[str, dict[str, list[tuple[Reply, Judgement]]]] = {}
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in replies}
    for at, judge in enumerate(judges):
        asked = {
            name: [r for r in found if at == 0 or find_probe(r.probe).judged == "configured"]
            for name, found in replies.items()
        }
        verdicts = {
            name: judge_replies(found, replace(settings, judge=judge))
            for name, found in asked.items()
        }
        for name, found in asked.items():
            rows = rows_of(found, verdicts[name])
            records[name] += [{"variant": name, "judge_at": at} | row for row in rows]
        judged[judge] = {
            name: list(zip(found, verdicts[name], strict=True)) for name, found in asked.items()
        }
        rates += [{"judge": judge} | row for row in _summary(asked, verdicts)]
    for name, rows in records.items():
        files.write_parquet(folder / "records" / f"{name}.parquet", rows)
    agreement = _agreement(replies, judged)
    files.write_json(
        folder / "results.json", {"rates": rates, "agreement": agreement, "provenance": facts}
    )
    return Evaluation(rates, agreement)


def _agreement(
    replies: Mapping[str, list[Reply]],
    judged: Mapping[str, Mapping[str, list[tuple[Reply, Judgement]]]],
) -> list[dict[str, Any]]:
    """Compare the judges by variant and probe, on what the configured judge judges."""
    rows: list[dict[str, Any]] = []
    for variant, found in replies.items():
        for probe in dict.fromkeys(reply.probe for reply in found):
            if find_probe(probe).judged != "configured":
                continue
            own = {
                judge: [verdict for reply, verdict in pairs[variant] if reply.probe == probe]
                for judge, pairs in judged.items()
            }
            rows += [{"probe": probe, "variant": variant} | row for row in agreement_rows(own)]
    return rows


def _attack_sets(request: EvalRequest, attack: AttackSettings) -> dict[str, BehaviourSet]:
    """Read `ROLE=SPEC`; a bare SPEC is the target."""
    found: dict[str, BehaviourSet] = {}
    for entry in request.attack_data:
        role, equals, spec = entry.partition("=")
        if not equals:
            role, spec = "target", entry
        if role not in attack.roles:
            raise InputError(
                "the attack has no use for these data",
                got=entry,
                allowed=", ".join(f"{one}=SPEC" for one in attack.roles) or "none",
            )
        found[role] = load_data(spec, data_dir=request.data_dir)
    return found


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
    )


def _probe_sets(request: EvalRequest) -> dict[str, BehaviourSet]:
    """Pair probes with data: `PROBE=SPEC` for one probe, a bare SPEC for all others."""
    specs: dict[str, str] = {}
    for entry in request.data:
        name, equals, spec = entry.partition("=")
        if equals and name in request.probes:
            specs[name] = spec
        else:
            specs[""] = entry
    probes: dict[str, BehaviourSet] = {}
    for name in request.probes:
        find_probe(name)
        place = specs.get(name) or specs.get("")
        if not place:
            raise InputError(
                f"no data for the probe {name!r}",
                got=", ".join(request.data) or "nothing",
                allowed="--data SPEC for all probes, or --data PROBE=SPEC",
            )
        data = load_data(place, data_dir=request.data_dir)
        probes[name] = data.split("evaluation").limit(request.limit)
    return probes


def _summary(
    replies: dict[str, list[Reply]], verdicts: dict[str, list[Judgement]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(reply.probe for reply in replies["intact"]))
    for probe in names:
        resampler = Resampler(probe)
        for variant, found in replies.items():
            pairs = [
                (reply, verdict)
                for reply, verdict in zip(found, verdicts[variant], strict=True)
                if reply.probe == probe
            ]
            scores = [verdict.score for _, verdict in pairs]
            prompts = [reply.example_id for reply, _ in pairs]
            sample = resampler.rate({"": cluster_means(scores, prompts)})
            interval = sample.interval("rate")
            row: dict[str, Any] = {
                "probe": probe,
                "variant": variant,
                "rate": interval.value,
                "low": interval.low,
                "high": interval.high,
                "scored": sum(score is not None for score in scores),
                "unscored": sum(score is None for score in scores),
                "nll": _mean([reply.nll for reply, _ in pairs]),
                "kl": _mean([reply.kl for reply, _ in pairs]),
                "repetition": _mean([reply.repetition for reply, _ in pairs]),
                "distinct": distinct([reply.text.split() for reply, _ in pairs])
                if find_probe(probe).coherent
                else None,
            }
            row |= _perplexity([reply for reply, _ in pairs], resampler)
            if variant == "intact":
                intact = sample
                row |= {"drop": None, "drop_low": None, "drop_high": None}
            else:
                drop = relative_drop(intact, sample).interval("drop")
                row |= {"drop": drop.value, "drop_low": drop.low, "drop_high": drop.high}
            rows.append(row)
    return rows


def _perplexity(replies: list[Reply], resampler: Resampler) -> dict[str, float | None]:
    """Return exp of the mean NLL over all tokens of all texts; the bootstrap is over texts."""
    known = [(r.nll, r.tokens) for r in replies if r.nll is not None and r.tokens]
    names = ("perplexity", "perplexity_low", "perplexity_high")
    row: dict[str, float | None] = dict.fromkeys(names)
    if not known:
        return row
    total = resampler.mean({"": [nll * tokens for nll, tokens in known]})
    found = ratio(total, resampler.mean({"": [float(tokens) for _, tokens in known]})).interval("")
    values = (found.value, found.low, found.high)
    # One text says nothing about the spread between texts.
    shown = values if len(known) > 1 else values[:1]
    exponentials = [None if value is None else math.exp(value) for value in shown]
    return row | dict(zip(names, exponentials, strict=False))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
