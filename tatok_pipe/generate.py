"""Generate images.

    python -m tatok_pipe.generate [CONFIG.yaml] checkpoint=s3://bucket/generator num_images=64 output.url=s3://bucket/out

Without arguments it draws 16 images from ./tatok_generator into ./tatok_samples. An image is a function of the seed,
its number and the settings, so the same command after a crash or Ctrl-C makes exactly what is missing.
"""

from tatok_pipe.commands.generate.options import GenerateConfig
from tatok_pipe.runs.entry import Entry

main = Entry("generate", GenerateConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
