"""The options of demo."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.config.options import option, section


@dataclass(frozen=True)
class OutputConfig:
    url: str = option(
        "tatok_out", help="local folder for the token dataset and report.html; replaced", is_url=True
    )


@dataclass(frozen=True)
class GeneratorOutputConfig:
    url: str = option("tatok_generator", help="local folder for the trained generator; replaced", is_url=True)
    steps: int = option(30, help="length of its training, about two seconds each on two cores", unit="steps")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")


@dataclass(frozen=True)
class SamplesOutputConfig:
    url: str = option("tatok_samples", help="local folder for the images it draws; replaced", is_url=True)
    num_images: int = option(40, help="how many; all classes in turn", unit="images")

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images={self.num_images}: expected at least 1")


@dataclass(frozen=True)
class DemoConfig:
    output: OutputConfig = section(OutputConfig, help="where the tokens go")
    generator: GeneratorOutputConfig = section(GeneratorOutputConfig, help="what is trained on them")
    samples: SamplesOutputConfig = section(SamplesOutputConfig, help="what it draws")
