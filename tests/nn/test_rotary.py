from __future__ import annotations

import pytest
import torch

from tatok_pipe.nn.rotary import grid_coordinates, rotary_table, rotate


def test_scores_depend_on_relative_position_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    coordinates = torch.tensor([[0.0, 0.0], [1.0, 3.0], [5.0, 2.0], [6.0, 5.0]])
    table = rotary_table(coordinates, head_dim=16)
    queries, keys = rotate(query.expand(4, 16), table), rotate(key.expand(4, 16), table)
    # Positions 0 → 1 and 2 → 3 are the same step (1, 3); 0 → 2 is another one.
    assert torch.allclose(queries[0] @ keys[1], queries[2] @ keys[3], atol=1e-5)
    assert not torch.allclose(queries[0] @ keys[1], queries[0] @ keys[2], atol=1e-3)


def test_length_is_kept_and_the_origin_is_untouched() -> None:
    x = torch.randn(3, 9, 8)
    table = rotary_table(grid_coordinates(3), head_dim=8)
    assert torch.allclose(rotate(x, table).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(rotate(x, table)[:, 0], x[:, 0])


def test_the_real_form_equals_the_complex_one() -> None:
    x = torch.randn(2, 9, 8)
    table = rotary_table(grid_coordinates(3), head_dim=8)
    assert torch.allclose(rotate(x.double(), table).float(), rotate(x, table), atol=1e-6)


def test_the_grid_is_in_raster_order() -> None:
    assert grid_coordinates(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_head_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_table(grid_coordinates(2), head_dim=6)
