from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.ar.ragged_tokens import RaggedTokens
from tatok_pipe.ar.requests import ImageTokens
from tatok_pipe.errors import UserError


def make_tokens(seed: int = 0) -> RaggedTokens:
    """Five images, the second and the last without a patch."""
    random = np.random.default_rng(seed)
    images = []
    for number, count in enumerate((3, 0, 7, 1, 0)):
        positions = np.sort(random.choice(9, count, replace=False))
        images.append(ImageTokens(number, random.integers(0, 5, 2), random.integers(0, 7, count), positions))
    return RaggedTokens.from_images(images, num_globals=2, fingerprint="ab" * 32)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    tokens = make_tokens()
    for each in (tokens, tokens[1:2], tokens[:0]):
        each.save(tmp_path / "t.npz")
        found = RaggedTokens.load(str(tmp_path / "t.npz"))
        assert found == each and found.tokenizer_fingerprint == "ab" * 32
        assert [getattr(found, name).dtype for name in ("global_codes", "patch_codes", "offsets")] == [
            np.int32,
            np.int32,
            np.int64,
        ]
    assert make_tokens(1) != tokens and tokens != dataclasses.replace(tokens, tokenizer_fingerprint="cd" * 32)
    # The same bytes, and arrays for those who have numpy alone.
    tokens.save(tmp_path / "t.npz")
    tokens.save(tmp_path / "again.npz")
    assert (tmp_path / "t.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        assert int(file["format"]) == 1 and str(file["tokenizer_fingerprint"]) == "ab" * 32
        assert file["offsets"].tolist() == [0, 3, 3, 10, 11, 11]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        RaggedTokens.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(
        "expected a file that RaggedTokens.save wrote"
    )
    assert "\n" not in message
    return message


def test_what_is_no_such_file(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "none.npz")
    assert "is a folder" in refusal(tmp_path)
    path = tmp_path / "t.npz"
    make_tokens().save(path)
    data = path.read_bytes()
    # Cut anywhere, or with a flipped bit anywhere, it is refused, or is what it was: not all bits of a zip matter.
    for end in range(0, len(data), 41):
        path.write_bytes(data[:end])
        refusal(path)
    num_refused = 0
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            assert RaggedTokens.load(path) == make_tokens()
        except UserError:
            num_refused += 1
    assert num_refused > len(data) // 23 // 2
    for content in (b"", b"nothing", b"\x80\x04K\x01."):
        path.write_bytes(content)
        refusal(path)
    np.savez(path, format=np.int64(2), tokenizer_fingerprint=np.str_("ab"))
    refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    refusal(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    refusal(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.int64(2)}, "is of format 2, this version reads 1"),
        ({"offsets": np.array([0, 3, 3, 10, 11, 12])}, "offsets do not divide 11 patches among 5 images"),
        ({"offsets": np.array([0, 5, 3, 10, 11, 11])}, "offsets do not divide"),
        ({"offsets": np.array([0, 11])}, "offsets do not divide"),
        ({"offsets": np.zeros(0, np.int64)}, "offsets do not divide"),
        ({"patch_positions": np.arange(10)}, "10 positions of 11 patches"),
        ({"patch_positions": np.zeros(11, np.int64)}, "patch_positions do not increase within an image"),
        ({"patch_positions": np.arange(11) - 1}, "patch_positions has -1, expected 0 or more"),
        ({"patch_codes": np.zeros(11)}, "patch_codes is float64"),
        ({"global_codes": np.zeros(10, np.int64)}, r"global_codes is int64 of shape \(10,\)"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "t.npz"
    make_tokens().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        RaggedTokens.load(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name not in change})  # type: ignore[arg-type]
    refusal(path)
