"""The model card that lies beside a tokenizer: what it is, how it was made, what it does on held-out images."""

from __future__ import annotations

from typing import Any

from tatok_pipe import storage
from tatok_pipe.tokenizer.analysis import CONTROLS
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.tokenizer.scores.table import SCORES
from tatok_pipe.training.settings import show_changes

CARD_FILE = "README.md"


def publish_card(url: str, model: TaTok, training: dict[str, Any], *, fingerprint: str) -> None:
    """Write the card into a checkpoint's folder."""
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(model.config, training, fingerprint=fingerprint, num_weights=num_weights)
    storage.publish_bytes(card.encode(), storage.join(url, CARD_FILE), exclusive=False)


def model_card(config: TaTokConfig, training: dict[str, Any], *, fingerprint: str, num_weights: int) -> str:
    """Markdown from the figures that training recorded; nothing is typed in by hand."""
    figures = training["held_out"]
    side = config.image_size
    # Figures of a training that knew fewer scores stay when its checkpoint is calibrated again.
    names = [name for name in (*SCORES, *CONTROLS) if all(name in row["psnr"] for row in figures["filtered"])]
    scores = [name for name in names if name in SCORES]
    lines = [
        f"# TaTok tokenizer, {side} px, {config.num_patches} patches, {config.num_globals} globals",
        "",
        f"- weights: {num_weights / 1e6:.2f} M, fingerprint `{fingerprint}`",
        f"- patch size {config.patch_size} px; codebooks: {_codebook(config.patch_codebook)} for patches, "
        f"{_codebook(config.global_codebook)} for globals",
        f"- made by: `{training['command']}`",
        *_start(training),
        _length(training),
        *(
            f"- from step {change['step']} on with {show_changes(change['settings'])}"
            for change in training.get("changes", [])
        ),
        *_calibration(training),
        "",
        f"## On {figures['num_images']} held-out images",
        "",
        f"PSNR is the mean over images, dB, of centre crops. Every score ({', '.join(scores)}) and control",
        "(chance, pixel variance, error to the mean of the neighbours, one measurement, the first patches in raster",
        f"order) keeps the same count in every image. `threshold` keeps what lies above one {figures['default_score']}",
        "for all images, at the same mean count.",
        "",
        f"| patches kept | {' | '.join(names)} | threshold | tokens with threshold, mean ± std |",
        f"|---{'|---' * (len(names) + 2)}|",
    ]
    for row in figures["filtered"]:
        cells = " | ".join(f"{row['psnr'][name]:.2f}" for name in names)
        lines.append(
            f"| {row['kept_share']:.0%} | {cells} | {row['psnr_threshold']:.2f} | "
            f"{_mean(row['tokens_threshold_mean'], row['tokens_threshold_std'])} |"
        )
    lines += [
        "",
        f"- all patches: {figures['psnr_none']:.2f} dB; with another image's globals "
        f"{_decibels(figures['psnr_all_but_globals_shuffled'])}",
        f"- globals only: {figures['psnr_globals_only']:.2f} dB; another image's globals only "
        f"{_decibels(figures['psnr_globals_shuffled'])}",
        f"- default filter (threshold {figures['default_threshold']:.4g} on {figures['default_score']}): "
        f"{_mean(figures['default_tokens_mean'], figures['default_tokens_std'])} tokens an image, "
        f"{figures['default_tokens_min']:.0f} to {figures['default_tokens_max']:.0f}; a flat grey image keeps "
        f"{figures['flat_image_patches']} of {config.num_patches} patches",
        f"- entropy model: mean entropy {figures['entropy_mean_nats']:.3f} nats a patch code, mean surprisal "
        f"{figures['surprisal_mean_nats']:.3f}",
        f"- codes used on these images: patches {figures['patch_codes_used_share']:.1%} (perplexity "
        f"{figures['patch_codes_perplexity']:.0f}), globals {figures['global_codes_used_share']:.1%} (perplexity "
        f"{figures['global_codes_perplexity']:.0f})",
        "",
    ]
    return "\n".join(lines)


def _start(training: dict[str, Any]) -> list[str]:
    """What the training began with; of another tokenizer also how that was made, and so on."""
    config = training["config"]
    if source := training.get("start_from"):
        earlier = source["training"]
        return [
            f"- started from the tokenizer of fingerprint `{source['fingerprint'][:12]}`"
            + ("" if source["has_prior"] else ", but for its entropy model")
            + f", made by: `{earlier['command']}`",
            *(f"  {line}" for line in [*_start(earlier), _length(earlier)]),
        ]
    if config["start"] == "closed_form":
        return [f"- started in closed form from {config['start_crops']} crops, in {training['start_s']} s"]
    return []


def _length(training: dict[str, Any]) -> str:
    return (
        f"- {training['num_steps']} steps of {training['config']['batch_size']} images in {training['train_s']} s on "
        f"{training['device']} in {training['precision']}, torch {training['torch']}, seed {training['seed']}"
    )


def _calibration(training: dict[str, Any]) -> list[str]:
    images = training["calibration_images"]
    if "calibration_command" not in training:
        return [f"- filters calibrated on {images} training images"]
    lines = [f"- filters calibrated again, on {images} images, by `{training['calibration_command']}`"]
    if not training["is_measured_again"]:
        lines.append("- figures below are of the training, with the filters of that time")
    return lines


def _mean(mean: float, std: float | None) -> str:
    """Of one image there is no spread."""
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _decibels(value: float | None) -> str:
    return "no figure (one image)" if value is None else f"{value:.2f}"


def _codebook(config: Any) -> str:
    if config.kind == "fsq":
        return f"FSQ {list(config.levels)} = {config.vocab_size:,} codes"
    return f"VQ of {config.vocab_size:,} codewords of {config.dim} dimensions"
