"""The image shards that a user means, or one line about what was given instead, before anything is done with them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import parse_names
from tatok_pipe.images.kinds import tell_kinds
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.loose.folder import is_image, plan_folder
from tatok_pipe.images.loose.image_list import read_classes
from tatok_pipe.images.loose.inner_tars import holds_tars, plan_inner_tars
from tatok_pipe.images.loose.manifest import plan_manifests, source_of
from tatok_pipe.images.loose.manifest_rows import JSON_LINES_SUFFIX, is_manifest_schema
from tatok_pipe.images.loose.part_plan import PartPlan
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.images.parquet import samples as parquet
from tatok_pipe.images.parquet.columns import are_tokens
from tatok_pipe.images.parquet.samples import read_schema
from tatok_pipe.images.shard_formats import PARQUET_SUFFIX, SHARD_SUFFIXES
from tatok_pipe.images.shard_list import NoShards, expand_shards
from tatok_pipe.images.webdataset.compressed import TAR_SUFFIXES
from tatok_pipe.storage import ShardFile
from tatok_pipe.storage.outputs import recognise
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.layout import DATA_DIRECTORY, DATASET_FILE, QUARANTINE_DIRECTORY

logger = logging.getLogger(__name__)

_ADVICE = "give the image shards that it was made from, or give it to train_ar as input.url"


@dataclass(frozen=True)
class ListPlace:
    """Where the list of loose images, of a folder, manifest or tar of tars, is kept from one run to the next, and what
    goes in."""

    list_url: str
    images_per_part: int = IMAGES_PER_PART
    # Where it is written to, where that is another place; empty: nowhere, as nobody will read it.
    saved_list_url: str | None = None
    refusal: str = ""  # why loose images are not read, where they are not
    limits: ShardLimits = DEFAULT_LIMITS  # what of a manifest's columns is of use
    other_stores: bool = False  # whether a manifest may name images in other stores than its own


def find_image_shards(spec: str, *, option: str, place: ListPlace | None = None) -> list[ShardFile]:
    """As `expand_shards`; `option` is what the user calls `spec`. With `place`, a folder of loose images, a
    manifest or a tar of tars too, as its parts; their list is written.

    Raises UserError as well where what is there was made by one of our entries and holds no images, where files are
    given that are of another kind by their names, and where a manifest cannot be used.
    """
    try:
        shards = expand_shards(spec)
    except UserError as error:
        # A store that does not answer would not say what is there either.
        is_away = isinstance(error.__cause__, OSError)
        if not is_away and (what := _recognise_given(spec)):
            raise UserError(
                f"{option}={storage.redact(spec)}: {what}, expected image shards: .tar files, or Parquet files with "
                "images"
            ) from error
        told = ""
        if isinstance(error, NoShards):
            if place is not None and error.folder and any(is_image(file.url) for file in error.files):
                return _plan_folder(error, place, option)
            told = tell_kinds(sorted(storage.redact(file.url) for file in error.files))
        raise UserError(f"{option}: {error}" + (f": {told}" if told else "")) from error
    tables = [shard.url for shard in shards if storage.file_name(shard.url).endswith(PARQUET_SUFFIX)]
    schema = _schema_of(tables[0]) if tables else None
    _refuse_token_datasets(tables, schema, option)
    manifests = [shard.url for shard in shards if storage.file_name(shard.url).endswith(JSON_LINES_SUFFIX)]
    if schema is not None and is_manifest_schema(schema):
        manifests += tables
    if manifests:
        return _plan_manifests(manifests, shards, place, option)
    _refuse_other_files(shards, option)
    if storage.file_name(shards[0].url).endswith(TAR_SUFFIXES):
        info = _info_of(shards[0])
        if info is not None and holds_tars(shards[0].url, info):
            return _plan_tars(shards, info, place, option)
    return shards


def _info_of(shard: ShardFile) -> storage.SourceInfo | None:
    """Which version of a file is there; None where it cannot be asked for, which is told when its turn comes."""
    if shard.size_bytes is not None:
        return storage.SourceInfo(shard.size_bytes, shard.etag, shard.mtime_ns)
    try:
        return storage.file_info(shard.url)
    except OSError:
        return None


def _plan_tars(
    shards: Sequence[ShardFile], info: storage.SourceInfo, place: ListPlace | None, option: str
) -> list[ShardFile]:
    url = shards[0].url
    shown = f"{option}={storage.redact(url)}"
    if place is None:
        raise UserError(
            f"{shown}: a tar of tars, expected image shards: what is asked for works on these alone"
        )
    if len(shards) > 1:
        raise UserError(
            f"{shown}: a tar of tars, and {len(shards) - 1} more files are given; expected it alone: give each an "
            "output.url of its own"
        )
    if place.refusal:
        raise UserError(place.refusal)
    try:
        plan = plan_inner_tars(url, info, list_url=place.list_url, limits=place.limits)
    except UserError as error:
        raise UserError(f"{option}={error}") from error
    return _keep(plan, url, place)


def _plan_folder(found: NoShards, place: ListPlace, option: str) -> list[ShardFile]:
    if place.refusal:
        raise UserError(place.refusal)
    for name, error in found.broken.items():
        if is_image(name):
            raise UserError(f"{option}: {error}")
    manifest = next((file.url for file in found.files if file.url.endswith(JSON_LINES_SUFFIX)), "")
    if manifest:
        logger.warning(
            "%s: beside the images, and not read; as a manifest it is given by its name",
            storage.redact(manifest),
        )
    try:
        plan = plan_folder(
            found.folder, found.files, list_url=place.list_url, images_per_part=place.images_per_part
        )
    except UserError as error:
        raise UserError(f"{option}={error}") from error
    return _keep(plan, found.folder, place)


def _plan_manifests(
    urls: Sequence[str], given: Sequence[ShardFile], place: ListPlace | None, option: str
) -> list[ShardFile]:
    shown = f"{option}={storage.redact(urls[0])}"
    if place is None:
        raise UserError(f"{shown}: a manifest, expected image shards: what is asked for works on these alone")
    if others := [shard.url for shard in given if shard.url not in urls]:
        raise UserError(
            f"{shown}: a manifest, and {len(others)} of {len(given)} files are none, first "
            f"{storage.redact(others[0])}; give each kind an output.url of its own"
        )
    if place.refusal:
        raise UserError(place.refusal)
    section = option.rpartition(".")[0]
    order = [shard.url for shard in given]
    try:
        plan = plan_manifests(
            order,
            list_url=place.list_url,
            images_per_part=place.images_per_part,
            limits=place.limits,
            other_stores=place.other_stores,
            permission=f"{section}.other_stores=true" if section else "other_stores=true",
        )
        source = source_of(order)
    except UserError as error:
        raise UserError(f"{option}={error}") from error
    return _keep(plan, source, place)


def _keep(plan: PartPlan, source: str, place: ListPlace) -> list[ShardFile]:
    """The parts, with their list where it is kept."""
    if plan.note:
        logger.warning("%s: %s", storage.redact(source), plan.note)
    list_url = place.list_url if place.saved_list_url is None else place.saved_list_url
    if list_url and (plan.is_new or list_url != place.list_url):
        storage.publish_bytes(plan.list_bytes, list_url, exclusive=False)
    return plan.shards(source, storage.openable_url(list_url or place.list_url))


def classes_by_name(shards: Sequence[ShardFile]) -> tuple[str, ...]:
    """The classes of image shards whose labels are told by names alone; none where they are numbers."""
    part = storage.parse_part(shards[0].url) if shards else None
    return read_classes(part.list_url)[0] if part else ()


def read_class_names(given: str, *, option: str) -> tuple[str, ...]:
    """Names of classes as a user gives them: `@` and the URL of a list, or that of a token dataset. Raises UserError
    where neither is there."""
    told = f"{option}={storage.redact(given)}"
    if not given.startswith("@"):
        names = read_dataset_file(given)[0].class_names
        if not names:
            raise UserError(
                f"{told}: a token dataset whose classes have no names; expected one with names, or @names.txt"
            )
        return names
    try:
        return parse_names(storage.read_bytes(given[1:]).decode())
    except FileNotFoundError:
        raise UserError(f"{told}: not found; expected a text file with the name of a class a line") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise UserError(f"{told}: {error}") from None


def class_names_of(shard: ShardFile, limits: ShardLimits) -> tuple[str, ...]:
    """Those that an image shard tells of its classes; none where it tells none or cannot be read, which is told when
    its turn comes."""
    if part := storage.parse_part(shard.url):
        classes, class_names = read_classes(part.list_url)
        return classes or class_names
    if not storage.file_name(shard.url).endswith(PARQUET_SUFFIX):
        return ()
    try:
        with closing(
            storage.open_random_access(shard.url, info=storage.file_info(shard.url), num_ahead=1)
        ) as file:
            return parquet.read_class_names(file, limits=limits)
    except OSError:
        return ()


def tell_output_inside(spec: str, shards: list[ShardFile], output_url: str) -> str:
    """Why a token dataset at `output_url` does not go with the image shards that `spec` gave: a later run with it would
    find token shards among them. Empty where it would not. `output_url` is canonical."""
    folders = [f"{output_url.rstrip('/')}/{name}/" for name in (DATA_DIRECTORY, QUARANTINE_DIRECTORY)]
    if any(storage.canonical_url(shard.url).startswith(tuple(folders)) for shard in shards):
        return "which lie where the token shards go"
    root = _folder_of(spec)
    if not root or not f"{output_url}/".startswith(storage.canonical_url(root).rstrip("/") + "/"):
        return ""
    pattern = storage.canonical_url(root).rstrip("/") + spec.strip()[len(root) :]
    is_folder = pattern.rstrip("/") == storage.canonical_url(root).rstrip("/")
    if is_folder or any(_matches(f"{folder}0.parquet", pattern) for folder in folders):
        return "where a later run would find token shards among the images, Parquet files too"
    return ""


def _matches(url: str, pattern: str) -> bool:
    """Whether a glob pattern, in which `**` crosses folders, may match; braces count as any word."""
    words = re.split(r"(\*\*/?|\*|\?|\[[^]]*\]|\{[^}]*\})", pattern)
    kinds = {"**": ".*", "**/": "(.*/)?", "*": "[^/]*", "?": "[^/]"}
    expression = "".join(
        kinds.get(word) or ("[^/]" if word[:1] == "[" else "[^/]*" if word[:1] == "{" else re.escape(word))
        for word in words
    )
    return re.fullmatch(expression, url) is not None


def _folder_of(spec: str) -> str:
    """The folder that `spec` names, or that its pattern is in; empty where it is a list, or names none."""
    spec = spec.strip()
    if not spec.strip("@") or spec.startswith(("@", "http://", "https://")):
        return ""
    folder = spec.rstrip("/")
    while any(character in folder for character in "*?[{"):
        folder = folder.rpartition("/")[0]
    return folder


def _recognise_given(spec: str) -> str:
    """What the folder is that `spec` names, or that its pattern is in, where one of our entries made it."""
    folder = _folder_of(spec)
    try:
        return recognise(folder) if folder else ""
    except (OSError, UserError):
        return ""  # the error that led here says what is wrong


def _refuse_token_datasets(tables: Sequence[str], schema: pa.Schema | None, option: str) -> None:
    """`tables` are the Parquet files, `schema` the columns of the first one."""
    parents = dict.fromkeys(table.rpartition("/")[0] for table in tables)
    for parent in parents:
        folder, _, name = parent.rpartition("/")
        if name in (DATA_DIRECTORY, QUARANTINE_DIRECTORY) and storage.exists(
            storage.join(folder, DATASET_FILE)
        ):
            raise UserError(
                f"{option}: {storage.redact(folder)}: a token dataset (it has {DATASET_FILE}), expected image shards; "
                f"{_ADVICE}"
            )
    if schema is not None and are_tokens(schema):
        raise UserError(
            f"{option}: {storage.redact(tables[0])}: a token shard (it has columns of codes), expected image "
            f"shards; {_ADVICE}"
        )


def _schema_of(url: str) -> pa.Schema | None:
    """The columns of a Parquet file; None of what cannot be read, which is told when its turn comes."""
    try:
        with closing(storage.open_random_access(url, info=storage.file_info(url), num_ahead=1)) as file:
            return read_schema(file)
    except OSError:
        return None


def _refuse_other_files(shards: list[ShardFile], option: str) -> None:
    others = (shard.url for shard in shards if not storage.file_name(shard.url).endswith(SHARD_SUFFIXES))
    if told := tell_kinds(map(storage.redact, others)):
        raise UserError(f"{option}: expected image shards, .tar or .parquet, given {told}")
