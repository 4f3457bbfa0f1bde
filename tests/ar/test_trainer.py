"""The training step: what it does not depend on, what it learns, and that it goes on exactly."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tatok_pipe.ar.batch import to_tensors
from tatok_pipe.ar.loss_parts import NUM_BUCKETS, LossParts
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import OptimizerConfig
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.loading.batches import empty_rows
from tatok_pipe.training.schedule import ScheduleConfig
from tests.ar.packed import Tokens, pack
from tests.ar.trainings import (
    MODEL,
    TRAINING,
    VOCABULARY,
    load,
    make_loader,
    make_trainer,
    run_processes,
    save_part,
    tensors,
    train,
)
from tests.token_datasets import TINY, make_rows, write_token_dataset


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("tokens") / "out")
    write_token_dataset(url, [make_rows(50), make_rows(30, first=50)])
    return url


def weights(trainer: object) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}  # type: ignore[attr-defined]


def test_a_step_does_not_depend_on_how_its_rows_are_cut(url: str) -> None:
    results = []
    for rows_per_microbatch in (1, 2, 4):
        trainer = make_trainer()
        losses = train(trainer, iter(make_loader(url, rows_per_microbatch=rows_per_microbatch)), 4)
        results.append((losses, weights(trainer)))
    for losses, after in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        for name, value in after.items():
            torch.testing.assert_close(value, results[0][1][name], rtol=1e-3, atol=2e-5)


def test_losses_go_down_and_parts_add_up(url: str) -> None:
    trainer = make_trainer(num_steps=60)
    losses = train(trainer, iter(make_loader(url)), 60)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    batch = next(iter(make_loader(url)))
    parts = LossParts.zeros(VOCABULARY)
    total, records = 0.0, 0
    with torch.no_grad():
        for each in tensors(batch):
            nats = trainer.model(each)
            parts.add(each, nats)
            total += float(nats.total.double().sum())
            records += len(each.condition_at)
    figures = parts.figures()
    assert parts.num_sequences == records == batch.num_sequences
    assert parts.num_codes == batch.num_codes
    assert figures["nats_per_image"] * records == pytest.approx(total, rel=1e-6)
    assert figures["bits_per_image"] == pytest.approx(figures["nats_per_image"] / 0.6931471805599453)
    by_part = (
        figures["global_nats"] * records * TINY.num_globals
        + figures["position_nats"] * batch.num_positions
        + figures["patch_nats"] * (batch.num_codes - records * TINY.num_globals)
    )
    assert by_part == pytest.approx(total, rel=1e-6)
    buckets = parts.sums[7:].view(3, NUM_BUCKETS)
    assert float(buckets[0].sum()) == pytest.approx(total, rel=1e-6)
    assert int(buckets[1].sum()) == batch.num_codes and int(buckets[2].sum()) == records
    assert (buckets[2] > 0).sum() > 1  # the dataset has lengths enough to tell buckets apart


def test_without_globals_all_codes_are_of_patches() -> None:
    vocabulary = replace(VOCABULARY, num_globals=0)
    batch = pack([[Tokens([], [(3, 1), (5, 2)]), Tokens([], [(0, 1)]), Tokens([], [])]], row_tokens=8)
    each = to_tensors(batch, "cpu", vocabulary=vocabulary)
    parts = LossParts.zeros(vocabulary)
    with torch.no_grad():
        nats = Generator(MODEL, vocabulary)(each)
        parts.add(each, nats)
    wanted = [0.0, float(nats.position.sum()), float(nats.code.sum()), 0.0, 6.0, 3.0, 3.0]
    assert parts.sums[:7].tolist() == pytest.approx(wanted, rel=1e-6)
    assert wanted[2] > 0 and "global_nats" not in parts.figures()


def test_buckets_are_those_of_the_lengths(url: str) -> None:
    batch = next(iter(make_loader(url, rows_per_step=100, rows_per_microbatch=100)))
    trainer = make_trainer()
    parts = LossParts.zeros(VOCABULARY)
    with torch.no_grad():
        each = tensors(batch)[0]
        parts.add(each, trainer.model(each))
    kept = [len(record.patch_codes) for record in TokenDataset(url).rows()]
    expected = [sum(4 * k // 17 == bucket for k in kept) for bucket in range(4)]
    assert parts.sums[7 + 2 * NUM_BUCKETS :].tolist() == expected


@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_resumed_training_is_bit_identical(url: str, tmp_path: Path, at: int) -> None:
    model = replace(MODEL, dropout=0.1)
    straight = make_trainer(model=model)
    expected = train(straight, iter(make_loader(url)), 12)

    first, loader = make_trainer(model=model), make_loader(url)
    losses = train(first, iter(loader), at)
    save_part(_folder(tmp_path), first, {"loader": loader.state_dict()})
    second, loader = make_trainer(model=model, seed=0), make_loader(url)
    loader.load_state_dict(load(tmp_path / "part", second)["loader"])
    assert second.num_steps_done == at
    losses += train(second, iter(loader), 12 - at)
    assert losses == expected
    for name, value in weights(straight).items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert straight.average is not None and second.average is not None
    for name, value in straight.average.weights.items():
        assert torch.equal(value, second.average.weights[name]), name
    assert not torch.equal(
        value, dict(second.model.named_parameters())[name].detach()
    )  # an average is another one


def test_dropout_and_order_follow_the_seed(url: str) -> None:
    model = replace(MODEL, dropout=0.3)
    runs = [train(make_trainer(model=model, seed=seed), iter(make_loader(url)), 3) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_validation_uses_the_average_and_changes_nothing(url: str) -> None:
    trainer, loader = make_trainer(), make_loader(url, held_out_share=0.3)
    train(trainer, iter(loader), 6)
    before = weights(trainer)

    def held_out() -> list[list[object]]:
        return [tensors(batch) for batch in make_loader(url, held_out_share=0.3, split="held_out")]  # type: ignore[misc]

    losses = trainer.validate(iter(held_out()))  # type: ignore[arg-type]
    assert 0 < losses.num_sequences < 80
    for name, value in before.items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    assert trainer.average is not None
    trainer.model.load_state_dict(trainer.average.weights, strict=False)
    by_hand = LossParts.zeros(VOCABULARY)
    trainer.model.eval()
    with torch.no_grad():
        for batches in held_out():
            for each in batches:
                by_hand.add(each, trainer.model(each))  # type: ignore[arg-type]
    assert by_hand.figures()["loss"] == pytest.approx(losses.figures()["loss"], rel=1e-6)


def test_recomputed_activations_and_z_loss(url: str) -> None:
    plain = make_trainer()
    expected = train(plain, iter(make_loader(url)), 3)
    recomputed = make_trainer(replace(TRAINING, checkpoint_activations=True))
    assert train(recomputed, iter(make_loader(url)), 3) == pytest.approx(expected, rel=1e-6)
    assert list(recomputed.model.state_dict()) == list(plain.model.state_dict())
    with_z = make_trainer(replace(TRAINING, optimizer=OptimizerConfig(z_loss=0.1)))
    assert train(with_z, iter(make_loader(url)), 3) != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shard", ["no", "yes"])
def test_two_processes_do_the_steps_of_one(url: str, shard: str) -> None:
    trainer = make_trainer()
    expected = train(trainer, iter(make_loader(url)), 6)
    norms = {name: float(value.double().norm()) for name, value in weights(trainer).items()}
    found = run_processes(2, url=url, shard=shard, num_steps=6)
    for each in found:
        assert each["losses"] == pytest.approx(expected, rel=1e-4)
        assert each["norms"] == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("shard", ["no", "yes"])
def test_a_training_goes_on_with_another_number_of_processes(url: str, tmp_path: Path, shard: str) -> None:
    expected = train(make_trainer(), iter(make_loader(url)), 9)
    first = run_processes(2, url=url, shard=shard, num_steps=3, save=str(tmp_path / "a"))
    _merge(tmp_path / "a", num_ranks=2)
    trainer, loader = make_trainer(), make_loader(url)
    loader.load_state_dict(load(tmp_path / "a" / "whole", trainer)["loader"])
    second = train(trainer, iter(loader), 3)
    save_part(_folder(tmp_path), trainer, {"loader": loader.state_dict()})
    third = run_processes(2, url=url, shard=shard, num_steps=3, resume=str(tmp_path / "part"))
    losses = [*first[0]["losses"], *second, *third[0]["losses"]]  # type: ignore[misc]
    assert losses == pytest.approx(expected, rel=1e-4)


def test_a_number_of_codes_of_none_is_no_division_by_zero(url: str) -> None:
    trainer = make_trainer()
    empty = empty_rows(2, row_tokens=make_loader(url).config.row_tokens, embedding_size=None)
    result = trainer.step([to_tensors(empty, "cpu", vocabulary=VOCABULARY)], num_codes=0)
    assert result.losses.num_sequences == 0 and float(result.grad_norm) == 0
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "part"
    folder.mkdir()
    return folder


def _merge(folder: Path, *, num_ranks: int) -> None:
    """What Ray Train's upload does: the parts of all processes into one folder."""
    whole = folder / "whole"
    for rank in range(num_ranks):
        shutil.copytree(folder / f"part-{rank}", whole, dirs_exist_ok=True)


def test_a_step_that_is_not_finite_moves_nothing(url: str) -> None:
    batches = iter(make_loader(url))
    trainer = make_trainer(replace(TRAINING, schedule=ScheduleConfig(peak=1e30, warmup_steps=0)))
    with pytest.raises(
        UserError, match=r"^step [12]: .*gradient not finite; .*training.schedule.peak"
    ) as caught:
        for _ in range(3):
            before, updates = weights(trainer), trainer.average.num_updates  # type: ignore[union-attr]
            train(trainer, batches, 1)
    assert caught.value.exit_code == 2
    assert int(str(caught.value).split()[1].rstrip(":")) == trainer.num_steps_done
    assert trainer.average is not None and trainer.average.num_updates == updates
    for name, value in before.items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


@pytest.mark.parametrize("part", ["weights", "optimizer", "average of weights"])
def test_a_state_that_is_not_finite_is_found(url: str, part: str) -> None:
    trainer = make_trainer()
    train(trainer, iter(make_loader(url)), 1)
    assert trainer.find_broken() == "" and trainer.average is not None
    weight = next(trainer.model.parameters())
    places = {
        "weights": weight.detach(),
        "optimizer": trainer.optimizer.state[weight]["exp_avg_sq"],
        "average of weights": next(iter(trainer.average.weights.values())),
    }
    places[part].view(-1)[3] = float("inf")
    assert trainer.find_broken() == part
