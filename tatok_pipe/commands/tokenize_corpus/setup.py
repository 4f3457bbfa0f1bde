"""What a run of tokenize_corpus makes of its options: image shards, what the dataset will be, what actors are told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.tokenize_corpus.options import NO_NAMES, InputConfig, TokenizeCorpusConfig
from tatok_pipe.config.load import to_dict
from tatok_pipe.config.shared_options import DEMO, DEMO_FOLDER
from tatok_pipe.encoding.image_input import (
    ListPlace,
    class_names_of,
    classes_by_name,
    find_image_shards,
    read_class_names,
    tell_output_inside,
)
from tatok_pipe.encoding.shard_tokenizer import TokenizeJob, token_spec
from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import decoder_version
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.loose.image_list import LIST_FILE
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.shard_formats import PARQUET_SUFFIX
from tatok_pipe.ray_runtime.cluster import has_gpu, start_ray
from tatok_pipe.storage import ShardFile
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.checkpoint import Tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.layout import DATASET_FILE
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.version import __version__

logger = logging.getLogger("tatok_pipe.tokenize_corpus")


def expand_input(config: TokenizeCorpusConfig, folders: ExitStack) -> list[ShardFile]:
    """The image shards. What has to be written down of them, and is of no use later, goes into `folders`."""
    spec, output = config.input.shards, storage.canonical_url(config.output.url)
    if spec == DEMO:
        spec = str(Path(write_demo_corpus(DEMO_FOLDER).shards[0]).parent)
    saved = None
    if config.dry_run:
        saved = storage.join(folders.enter_context(temporary_folder()), LIST_FILE)
    where = f"output.url={storage.redact(config.output.url)}: inside input.shards={storage.redact(spec)}"
    advice = "give an output.url outside"
    inside = tell_output_inside(spec, [], output)
    place = ListPlace(
        storage.join(config.output.url, LIST_FILE),
        config.input.images_per_part,
        saved,
        f"{where}, {inside}; {advice}" if inside else "",
        config.input.limits,
        config.input.other_stores,
    )
    shards = find_image_shards(spec, option="input.shards", place=place)
    if told := tell_output_inside(spec, shards, output):
        if any(shard.url.endswith(PARQUET_SUFFIX) for shard in shards):
            raise UserError(f"{where}, {told}; {advice}")
        logger.warning("%s; token shards there are passed over as long as there are .tar files", where)
    return shards


def make_spec(
    config: TokenizeCorpusConfig, tokenizer: Tokenizer, shards: Sequence[ShardFile] = ()
) -> TokenSpec:
    """What the rows of a run over these shards will be. Raises UserError where the settings do not fit the
    checkpoint."""
    model = tokenizer.model.config
    try:
        config.input.crops.check_size(model.image_size)
    except ValueError as error:
        raise UserError(f"input.crops.{error}") from None
    filter = tokenizer.filter(config.dtf)
    precision, batch_size = config.encode.precision, config.encode.batch_size
    before: TokenSpec | None = None
    if storage.exists(storage.join(config.output.url, DATASET_FILE)):
        before = TokenDataset(config.output.url).spec
    if precision == "auto" or batch_size is None:
        if before is not None:
            begun: dict[str, Any] = before.encoding
        else:
            start_ray()
            begun = (
                {"precision": "bf16", "batch_size": 128}
                if has_gpu()
                else {"precision": "fp32", "batch_size": 16}
            )
        precision = begun["precision"] if precision == "auto" else precision
        batch_size = begun["batch_size"] if batch_size is None else batch_size
    return token_spec(
        tokenizer,
        filter,
        encoding={
            "precision": precision,
            "batch_size": batch_size,
            "decoder": decoder_version(),
            "max_pixels": config.input.max_pixels,
            "max_member_bytes": config.input.limits.max_member_bytes,
            **({"ignore": sorted(config.input.limits.ignore)} if config.input.limits.ignore else {}),
            **config.input.crops.to_encoding(),
            **{name: value for name, value in to_dict(config.record).items() if name != "scores" or value},
        },
        class_names=_class_names(config.input, shards, before),
    )


def _class_names(
    config: InputConfig, shards: Sequence[ShardFile], before: TokenSpec | None
) -> tuple[str, ...]:
    """What the classes are called, given what an earlier run began with. Raises UserError where a folder or
    manifest has classes that cannot be told by their names."""
    found = class_names_of(shards[0], config.limits) if shards else ()
    classes = classes_by_name(shards) if config.limits.wants("label") else ()
    if config.class_names is None:
        names = found if before is None else before.class_names
        new = [name for name in classes if name not in names]
        if new and names:  # they get the next numbers
            names = (*names, *new)
    else:
        given = config.class_names
        names = () if given == NO_NAMES else read_class_names(given, option="input.class_names")
    missing = [name for name in classes if name not in names]
    if missing:
        told = f"has {len(names)} names" if names else "classes have no names there"
        where = (
            f"input.class_names={storage.redact(config.class_names)}" if config.class_names else "output.url"
        )
        more = f" nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where}: {told}, and the classes of input.shards are told by theirs: not {missing[0]!r}{more}; give "
            "names that have them all, or input.limits.ignore=[label] for rows without labels"
        )
    return names


def make_job(config: TokenizeCorpusConfig, spec: TokenSpec) -> TokenizeJob:
    """What the actors are told."""
    checkpoint = config.tokenizer.checkpoint
    return TokenizeJob(
        checkpoint=checkpoint if checkpoint == PACKAGED else storage.openable_url(checkpoint),
        output_url=storage.openable_url(config.output.url),
        spec=spec,
        filter=Filter(**asdict(spec.dtf)),
        preprocess=PreprocessConfig(image_size=spec.image_size, max_pixels=config.input.max_pixels),
        limits=config.input.limits,
        precision=spec.encoding["precision"],
        batch_size=spec.encoding["batch_size"],
        mutual_information=config.record.mutual_information,
        patch_entropy=config.record.patch_entropy,
        crops=config.input.crops,
        replaces=config.input.only == "quarantined",
    )


def describe(config: TokenizeCorpusConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a reader of the dataset wants to know of its making; not compared on resume."""
    return {
        "tatok_pipe": __version__,
        "tokenizer": {
            "checkpoint": storage.redact(config.tokenizer.checkpoint),
            "model": to_dict(tokenizer.model.config),
        },
        "source": storage.redact(config.input.shards),
    }
