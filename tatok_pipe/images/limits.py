"""What is accepted of an image shard: which files are read, and how much of everything."""

from __future__ import annotations

from functools import cached_property

from tatok_pipe.config.options import config_dataclass, option
from tatok_pipe.images.fields import CAPTION_NAMES, IGNORABLE, LABEL_NAMES, MAX_METADATA_BYTES
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS

# `cls` first, WebDataset's own; `cls.txt` and the like are what its decoders make text of.
LABEL_EXTENSIONS = tuple(
    sorted((*LABEL_NAMES, *(f"{name}.txt" for name in LABEL_NAMES)), key=lambda name: name != "cls")
)
CAPTION_EXTENSIONS = tuple(sorted(CAPTION_NAMES, key=lambda name: name != "txt"))
# Whatever else lies in a shard is passed over unread: .pyd and .pkl above all, which would be programs.
METADATA_EXTENSIONS = (*CAPTION_EXTENSIONS, *LABEL_EXTENSIONS, "json")


@config_dataclass
class ShardLimits:
    """What is accepted of an image shard."""

    max_member_bytes: int = option(
        256 << 20,
        at_least=1,
        help="largest image, label, caption or JSON file (the last three: 16 MiB at most); larger is quarantined",
        unit="bytes",
    )
    max_members: int = option(
        1_000_000,
        at_least=1,
        help="most members of a tar, or rows of a Parquet file; a shard with more is refused",
    )
    max_shard_bytes: int = option(
        128 << 30, at_least=1, help="largest image shard, as stored or by the sizes it declares", unit="bytes"
    )
    max_page_bytes: int = option(
        512 << 20,
        at_least=1,
        help="largest page of a Parquet file, of which up to four times as much is held; a shard with a larger one "
        "is refused",
        unit="bytes",
    )
    require_end_marker: bool = option(
        True, help="refuse a shard without tar's end-of-archive marker: its last members may be missing"
    )
    max_silence_s: float = option(
        30.0,
        above=0,
        help="how long a web server that a manifest names may be silent; one that does not answer, asked twice, is "
        "not asked for more images for a quarter of an hour",
        unit="s",
    )
    ignore: list[str] = option(
        [],
        choices=IGNORABLE,
        help="what is left unread of a sample, as if it had none; for corpora whose labels or captions are of another "
        "kind than ours",
    )

    def wants(self, field: str) -> bool:
        """Whether "label", "caption" or "meta" is read."""
        return field not in self.ignore

    @cached_property
    def metadata_extensions(self) -> frozenset[str]:
        """The extensions of what belongs to an image and is read."""
        fields = {"label": LABEL_EXTENSIONS, "caption": CAPTION_EXTENSIONS, "meta": ("json",)}
        return frozenset(
            extension for name, extensions in fields.items() if self.wants(name) for extension in extensions
        )

    @cached_property
    def extensions(self) -> frozenset[str]:
        """The extensions of what is read."""
        return self.metadata_extensions.union(IMAGE_EXTENSIONS)

    def largest(self, extension: str) -> int:
        """The most bytes of a file with this extension."""
        if extension in METADATA_EXTENSIONS:
            return min(self.max_member_bytes, MAX_METADATA_BYTES)
        return self.max_member_bytes


DEFAULT_LIMITS = ShardLimits()
# Where labels, captions and JSON are of no use, they need not be right either.
IMAGES_ONLY = ShardLimits(ignore=list(IGNORABLE))
