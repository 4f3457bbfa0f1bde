"""The generator's contracts: a distribution over sequences, packed as alone, and nothing seen that is not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator, Nats
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.nn import packed
from tatok_pipe.nn.blocks import attend
from tests.ar.packed import SMALL, VOCABULARY, Tokens, draw, every_sequence, pack, tensors, widen

CONFIGS = Path(__file__).parents[2] / "configs" / "ar"


def spans(batch: BatchTensors) -> list[slice]:
    """Elements of each sequence."""
    ends = batch.boundaries.unique().tolist()
    return [slice(start, next(e for e in ends if e > start)) for start in batch.condition_at.tolist()]


def values(nats: Nats) -> Tensor:
    """(T, 3)."""
    return torch.stack([nats.position, nats.code, nats.z], dim=1)


def gradients(model: Generator, nats: Nats) -> dict[str, Tensor]:
    model.zero_grad()
    (nats.total.sum() + 0.01 * nats.z.sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters())), "a parameter has no gradient"
    return found


def test_the_probabilities_of_all_sequences_sum_to_one() -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(num_globals=1, num_patches=3, global_vocab=2, patch_vocab=2)
    model = widen(Generator(replace(SMALL, condition="none"), vocabulary)).eval()
    sequences = every_sequence()
    assert len(sequences) == 2 * (1 + 2) ** 3  # each place is dropped or has one of two codes
    batch = to_tensors(pack([sequences], row_tokens=256), "cpu", vocabulary=vocabulary)
    with torch.no_grad():
        total = model(batch).total
    probabilities = torch.stack([(-total[span].sum()).exp() for span in spans(batch)])
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities.max() > 2 * probabilities.min()  # and they are not all alike


@pytest.mark.parametrize("condition", ["none", "class", "embedding"])
def test_a_packed_batch_is_its_sequences_alone(condition: str) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, condition=condition, embedding_dim=6, num_budgets=2)
    model = widen(Generator(config, VOCABULARY)).eval()
    drawn = draw(9)
    batch = tensors([drawn[:4], drawn[4:7], drawn[7:]], row_tokens=40)
    nats = model(batch)
    packed_gradients = gradients(model, nats)
    alone_gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    seen = torch.zeros(batch.num_elements, dtype=torch.bool)
    for tokens, span in zip(drawn, spans(batch), strict=True):
        alone = tensors([[tokens]], row_tokens=span.stop - span.start)
        expected = model(alone)
        torch.testing.assert_close(values(nats)[span], values(expected), atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(model, expected).items():
            alone_gradients[name] += gradient
        seen[span] = True
    assert not values(nats)[~seen].any() and not seen.all()  # padding costs nothing
    for name, gradient in alone_gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(packed_gradients[name] / scale, gradient / scale, atol=1e-5, rtol=0)
        assert gradient.any(), f"{name} has no gradient"


def test_the_nats_are_those_of_the_logits_one_step_at_a_time(model: Generator) -> None:
    """A sampler's view: keys and values are kept, each element is a call of its own."""
    tokens = draw(6)[5]
    assert len(tokens.patches) > 2
    nats = model(tensors([[tokens]], row_tokens=20))
    keys, values = ([[] for _ in model.blocks] for _ in range(2))

    def step(x: Tensor, spot: int) -> Tensor:
        for block, seen_keys, seen_values in zip(model.blocks, keys, values, strict=True):

            def attend(query: Tensor, key: Tensor, value: Tensor, k=seen_keys, v=seen_values) -> Tensor:
                k.append(key)
                v.append(value)
                scores = torch.einsum("bhd,nbhd->bhn", query, torch.stack(k)) / query.shape[-1] ** 0.5
                return torch.einsum("bhn,nbhd->bhd", scores.softmax(-1), torch.stack(v))

            x = block(x, model.rotary[[spot]], attend)
        return model.norm(x)

    def one(value: int) -> Tensor:
        return torch.tensor([value])

    asked = len(tokens.patches) if tokens.has_budget else -1

    def cost(logits: Tensor, target: int) -> float:
        return -logits[0].log_softmax(-1)[target].item()

    hidden = step(
        model.embed_condition(one(tokens.label), torch.tensor([tokens.is_conditional]), one(asked)), 0
    )
    code, position, last = [], [], -1
    for slot, target in enumerate(tokens.globals):
        code.append(cost(model.global_logits(hidden), target))
        hidden = step(model.embed_global(one(target), one(slot)), 1 + slot)
    for place, target in tokens.patches:
        position.append(cost(model.position_logits(hidden, one(last)), place))
        code.append(cost(model.code_logits(hidden, one(place)), target))
        hidden = step(model.embed_patch(one(target), one(place)), 1 + VOCABULARY.num_globals + place)
        last = place
    position.append(cost(model.position_logits(hidden, one(last)), VOCABULARY.num_patches))
    assert nats.code[: len(code)].tolist() == pytest.approx(code, abs=1e-4)
    assert nats.position[2 : 2 + len(position)].tolist() == pytest.approx(position, abs=1e-4)


def test_nothing_leaks_from_one_sequence_into_another(model: Generator) -> None:
    drawn = draw(5)
    for changed_number in (0, 2, 4):
        changed = list(drawn)
        tokens = drawn[changed_number]
        changed[changed_number] = replace(
            tokens,
            globals=[(code + 1) % 5 for code in tokens.globals],
            patches=[(position, (code + 1) % 7) for position, code in tokens.patches],
            label=(tokens.label + 1) % 4,
        )
        with torch.no_grad():
            before_batch = tensors([drawn], row_tokens=60)
            before = values(model(before_batch))
            after = values(model(tensors([changed], row_tokens=60)))
        for number, span in enumerate(spans(before_batch)):
            assert torch.allclose(before[span], after[span], atol=1e-6) == (number != changed_number)


def test_a_later_element_changes_nothing_before_it(model: Generator) -> None:
    tokens = Tokens([1, 2], [(1, 3), (4, 5), (6, 0), (7, 2)])  # elements 0 … 6
    later_code = replace(tokens, patches=[(1, 3), (4, 5), (6, 1), (7, 2)])
    later_place = replace(tokens, patches=[(1, 3), (4, 5), (5, 0), (7, 2)])
    with torch.no_grad():
        nats, with_code, with_place = (
            model(tensors([[each]], row_tokens=7)) for each in (tokens, later_code, later_place)
        )
    same = torch.isclose(values(nats), values(with_code), atol=1e-6)
    assert same[:4].all() and same[4, 0]  # the position before a code does not depend on it
    assert not same[4, 1] and not same[5:, 0].any()
    same = torch.isclose(values(nats), values(with_place), atol=1e-6)
    assert same[:4].all() and not same[4].any()


def test_positions_only_increase_and_an_end_is_always_possible(model: Generator) -> None:
    hidden = 10 * torch.randn(10, 32)
    last = torch.arange(-1, 9)
    probabilities = model.position_logits(hidden, last).softmax(-1)
    assert probabilities.shape == (10, 10)
    for row, position in zip(probabilities, last.tolist(), strict=True):
        assert not row[: position + 1].any()
        assert (row[position + 1 :] > 0).all()
    assert probabilities[9].tolist() == [0] * 9 + [1]


def test_z_is_the_squared_log_partition(model: Generator) -> None:
    tokens = Tokens([1, 2], [(4, 5)])
    batch = tensors([[tokens]], row_tokens=4)
    with torch.no_grad():
        nats, hidden = model(batch), model.hidden(batch)
        partitions = [
            [model.global_logits(hidden[:1])],
            [model.global_logits(hidden[1:2])],
            [
                model.position_logits(hidden[2:3], torch.tensor([-1])),
                model.code_logits(hidden[2:3], torch.tensor([4])),
            ],
            [model.position_logits(hidden[3:], torch.tensor([4]))],
        ]
    expected = [sum(logits.logsumexp(-1).item() ** 2 for logits in each) for each in partitions]
    assert nats.z.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("condition", ["class", "embedding"])
def test_a_hidden_condition_does_not_matter_and_a_shown_one_does(condition: str) -> None:
    torch.manual_seed(0)
    model = widen(Generator(replace(SMALL, condition=condition, embedding_dim=2), VOCABULARY)).eval()
    tokens = Tokens([1, 2], [(4, 5)], label=1, embedding=[1.0, 0.0])
    other = replace(tokens, label=3, embedding=[0.0, 1.0])

    @torch.no_grad()
    def total(tokens: Tokens, *, is_conditional: bool) -> float:
        sequence = replace(tokens, is_conditional=is_conditional)
        return model(tensors([[sequence]], row_tokens=4)).total.sum().item()

    assert total(tokens, is_conditional=False) == total(other, is_conditional=False)
    shown = {total(tokens, is_conditional=True), total(other, is_conditional=True)}
    assert len(shown | {total(tokens, is_conditional=False)}) == 3


def test_a_budget_is_the_bucket_of_the_number_of_patches() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, condition="none", num_budgets=5)  # of 0 to 9 patches, two numbers each
    model = widen(Generator(config, VOCABULARY)).eval()

    def embed(num_patches: int) -> tuple[float, ...]:
        one = torch.zeros(1, dtype=torch.int64)
        return tuple(model.embed_condition(one, one > 0, one + num_patches)[0].tolist())

    found = [embed(num_patches) for num_patches in range(-1, 10)]
    assert len(set(found)) == 6 and found[1:] == [found[1 + 2 * (n // 2)] for n in range(10)]

    @torch.no_grad()
    def total(num_patches: int, *, has_budget: bool) -> float:
        tokens = Tokens([1, 2], [(place, 3) for place in range(num_patches)], has_budget=has_budget)
        return model(tensors([[tokens]], row_tokens=12)).total.sum().item()

    for num_patches in (0, 4, 9):
        assert total(num_patches, has_budget=True) != total(num_patches, has_budget=False)


def test_embeddings_that_are_missing_are_an_error() -> None:
    model = Generator(replace(SMALL, condition="embedding", embedding_dim=2), VOCABULARY)
    with pytest.raises(ValueError, match="embeddings=None"):
        model(tensors([[Tokens([1, 2], [])]], row_tokens=3))


@pytest.mark.parametrize("condition", ["none", "class", "embedding"])
def test_padding_alone_has_zero_gradients_for_everything(condition: str) -> None:
    model = Generator(replace(SMALL, condition=condition, embedding_dim=6, dropout=0.1), VOCABULARY)
    batch = pack([[], []], row_tokens=20)
    if condition == "embedding":
        batch = replace(batch, embeddings=torch.zeros(0, 6).numpy())
    nats = model(to_tensors(batch, "cpu", vocabulary=VOCABULARY))
    assert not values(nats).any()
    for name, gradient in gradients(model, nats).items():
        assert gradient.isfinite().all() and not gradient.any(), name


def test_a_tokenizer_without_globals_has_sequences_too() -> None:
    torch.manual_seed(0)
    vocabulary = replace(VOCABULARY, num_globals=0)
    model = Generator(SMALL, vocabulary)
    rows = [[Tokens([], [(3, 1), (5, 2)]), Tokens([], [])]]
    nats = model(to_tensors(pack(rows, row_tokens=5), "cpu", vocabulary=vocabulary))
    assert (nats.position > 0).tolist() == [True, True, True, True, False]
    assert (nats.code > 0).tolist() == [True, True, False, False, False]
    gradients(model, nats)


def test_bf16_autocast_stays_close_and_costs_are_float32(model: Generator) -> None:
    batch = tensors([draw(5)], row_tokens=60)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    assert rough.total.dtype == torch.float32
    assert rough.total.sum().item() == pytest.approx(exact.total.sum().item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, rough).values())


def test_dropout_acts_in_training_alone() -> None:
    model = Generator(replace(SMALL, dropout=0.5), VOCABULARY)
    batch = tensors([draw(3)], row_tokens=40)
    with torch.no_grad():
        assert not torch.equal(model(batch).total, model(batch).total)
        model.eval()
        assert torch.equal(model(batch).total, model(batch).total)


def test_blocks_compile_once_for_all_batches(model: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trainer does it on GPUs; dense attention stands in for the kernel there."""
    monkeypatch.setattr("tatok_pipe.nn.packed._attend_each", packed._attend_masked)
    batches = [tensors([draw(count, seed=count)], row_tokens=60) for count in (5, 4, 3)]
    expected = [model(batch).total for batch in batches]
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, total in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(batch).total, total)


def test_flops_are_those_that_a_step_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GeneratorConfig(width=64, depth=3, heads=2, num_classes=1000)
    vocabulary = Vocabulary(num_globals=4, num_patches=16, global_vocab=50, patch_vocab=90)
    model = Generator(config, vocabulary)
    sequence = Tokens([1] * 4, [(position, 1) for position in range(0, 16, 2)])
    length, count = 13, 8
    batch = to_tensors(pack([[sequence] * count], row_tokens=length * count), "cpu", vocabulary=vocabulary)

    def written_out(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor) -> Tensor:
        parts = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        return attend(*parts, causal=True).transpose(1, 2).flatten(0, 1)

    monkeypatch.setattr(packed, "_attend_each", written_out)  # the counter does not know the kernel for CPUs
    with FlopCounterMode(display=False) as counter:
        model(batch).total.sum().backward()
    # Written out, the whole square of a stretch is multiplied; causal attention needs its lower half.
    square, needed = 12 * 3 * 64 * length, 12 * 3 * 64 * (length + 1) / 2
    expected = (model.flops_per_token(length) - needed + square) * length * count
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-5)
    assert needed > 0.01 * model.flops_per_token(length)  # the test would see attention miscounted


@pytest.mark.parametrize(("name", "millions"), [("b", 111), ("l", 343), ("xl", 775), ("xxl", 1411)])
def test_sizes_are_those_of_llamagen(name: str, millions: float) -> None:
    """Without the tables of globals, which LlamaGen has none of. What remains differs by the head's MLP, the
    embeddings of places and the rounding of the MLPs' hidden size."""
    model = on_meta(name, Vocabulary(32, 256, 16_384, 16_384))
    of_globals = sum(p.numel() for key, p in model.named_parameters() if key.startswith("global_"))
    assert model.num_parameters - of_globals == pytest.approx(millions * 1e6, rel=0.05)


def test_the_tiny_size_and_the_default() -> None:
    assert on_meta("tiny", Vocabulary(16, 256, 512, 2048)).num_parameters == pytest.approx(5.5e6, rel=0.02)
    assert on_meta("b", VOCABULARY).config == GeneratorConfig(num_classes=1000)


def on_meta(name: str, vocabulary: Vocabulary) -> Generator:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with torch.device("meta"):
        return Generator(GeneratorConfig(num_classes=1000, **config["model"]), vocabulary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "multiple of 8"),
        ({"heads": 0}, "heads=0: expected at least 1"),
        ({"width": 24}, "multiple of 8"),
        ({"condition": "text"}, "condition=text: expected one of none, class, embedding"),
        ({"num_classes": -1}, "num_classes=-1: expected at least 0"),
        ({"condition": "embedding"}, "embedding_dim=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_configs_that_cannot_work_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_the_model_needs_torch_alone() -> None:
    code = "import sys, tatok_pipe.ar.model; print([m for m in ('pyarrow', 'ray', 'omegaconf') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu(model: Generator) -> None:
    batch = pack([draw(5)], row_tokens=60)
    exact = values(model(to_tensors(batch, "cpu", vocabulary=VOCABULARY)))
    model.cuda()
    on_gpu = to_tensors(batch, "cuda", vocabulary=VOCABULARY)
    torch.testing.assert_close(values(model(on_gpu)).cpu(), exact, atol=1e-3, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        rough = model(on_gpu)
    assert rough.total.sum().item() == pytest.approx((exact[:, 0] + exact[:, 1]).sum().item(), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, rough).values())
