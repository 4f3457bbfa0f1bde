"""Two token datasets compared, for those who retrain a tokenizer or filter anew: how far are the tokens apart?"""

from __future__ import annotations

import json
from dataclasses import asdict

from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Findings
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites.base import Row
from tatok_pipe.evaluation.suites.corpus import counts, pairs
from tatok_pipe.evaluation.suites.corpus.comparable import PAIRS, left_out
from tatok_pipe.evaluation.suites.corpus.comparison import Comparison
from tatok_pipe.evaluation.suites.corpus.counts import Counts
from tatok_pipe.evaluation.suites.corpus.describe_codes import describe_codes
from tatok_pipe.evaluation.suites.corpus.describe_pairs import describe_pairs
from tatok_pipe.evaluation.suites.corpus.describe_tokens import describe_origin, describe_tokens
from tatok_pipe.evaluation.suites.corpus.pairs import Changed, Pairing, Pairs
from tatok_pipe.evaluation.suites.corpus.parts import (
    ADVICE,
    FIRST,
    OTHER,
    CorpusPart,
    corpus_parts,
    find_part,
    read_batches,
)
from tatok_pipe.evaluation.suites.corpus.plots import make_plots
from tatok_pipe.tokens.index import read_footer
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.parquet_groups import parquet_errors


class Corpus:
    name = "corpus"

    def missing(self, plan: EvaluationPlan) -> str:
        given = {FIRST: plan.tokens, OTHER: plan.other_tokens}
        lacking = " and ".join(f"{name}=" for name, url in given.items() if url is None)
        return f"{lacking}, for two token datasets to compare" if lacking else ""

    def parts(self, plan: EvaluationPlan) -> list[str]:
        return list(corpus_parts(*_urls(plan)))

    def measure(self, part: str, bench: Bench) -> list[Row]:
        """One row: the counts of a token shard, and the values of its pairs as lists."""
        found = find_part(part, *_urls(bench.plan))
        with parquet_errors(data_url(found.dataset.url, found.shard), ADVICE):
            counted, paired = _measure(found, bench)
        row: Row = {"side": found.dataset.name, **counted.to_row()}
        for name in pairs.VALUES:
            row[name] = paired.column(name) if paired else None
        row["changed"] = json.dumps([asdict(each) for each in paired.changed]) if paired else None
        return [row]

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        sides: dict[str, Counts] = {}
        paired = Pairs()
        for row in rows:
            counted = Counts.from_row(row)
            sides.setdefault(row["side"], Counts.empty(counted.spec)).merge(counted)
            if row["changed"] is not None:
                values = {name: row[name] for name in pairs.VALUES}
                paired.add(values, [Changed(**each) for each in json.loads(row["changed"])])
        comparison = Comparison(sides[FIRST], sides[OTHER], paired)
        sections = [
            describe(comparison, plan)
            for describe in (describe_origin, describe_tokens, describe_codes, describe_pairs)
        ]
        verdicts = [verdict for section in sections for verdict in section.verdicts]
        left_out = dict(comparison.left_out)
        for section in sections:
            left_out |= section.left_out
        if left_out:
            told = "; ".join(f"{name} ({reason})" for name, reason in left_out.items())
            verdicts.append(f"Left out: {told}.")
        return Findings(
            self.name,
            f"Two token datasets, {comparison.size}",
            verdicts=verdicts,
            figures=[figure for section in sections for figure in section.figures],
            tables=[table for section in sections for table in section.tables],
            plots=make_plots(comparison, seed=plan.seed),
        )


def _urls(plan: EvaluationPlan) -> tuple[str, str]:
    assert plan.tokens is not None and plan.other_tokens is not None
    return plan.tokens, plan.other_tokens


def _measure(part: CorpusPart, bench: Bench) -> tuple[Counts, Pairs | None]:
    dataset, other = part.dataset, part.paired
    footer = read_footer(dataset.url, part.shard, dataset.spec)
    pairing, columns = None, [*counts.COLUMNS]
    if other is not None and PAIRS not in left_out(dataset.spec, other.spec):
        read_footer(other.url, part.shard, other.spec)  # which refuses a shard of other settings
        pairing = Pairing(dataset.spec, other.spec, read_batches(other, part.shard, [*pairs.COLUMNS]))
        columns += [name for name in pairs.COLUMNS if name not in columns]
    counted = Counts.empty(dataset.spec)
    counted.num_shards = 1
    for batch in read_batches(dataset, part.shard, columns):
        counted.update(batch, seed=bench.plan.seed)
        if pairing:
            pairing.add(batch)
        bench.touch(batch.num_rows)
    counted.statistics.num_quarantined = footer.statistics.num_quarantined  # which have no row
    return counted, pairing.pairs if pairing else None
