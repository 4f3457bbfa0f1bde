"""The options of demo."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section


@config_dataclass
class OutputConfig:
    url: str = option(
        "tatok_out", help="local folder for the token dataset and report.html; replaced", is_url=True
    )


@config_dataclass
class GeneratorOutputConfig:
    url: str = option("tatok_generator", help="local folder for the trained generator; replaced", is_url=True)
    steps: int = option(
        30, at_least=1, help="length of its training, about two seconds each on two cores", unit="steps"
    )


@config_dataclass
class SamplesOutputConfig:
    url: str = option("tatok_samples", help="local folder for the images it draws; replaced", is_url=True)
    num_images: int = option(40, at_least=1, help="how many; all classes in turn", unit="images")


@config_dataclass
class DemoConfig:
    output: OutputConfig = section(OutputConfig, help="where the tokens go")
    generator: GeneratorOutputConfig = section(GeneratorOutputConfig, help="what is trained on them")
    samples: SamplesOutputConfig = section(SamplesOutputConfig, help="what it draws")
