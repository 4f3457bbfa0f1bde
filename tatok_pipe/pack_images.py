"""Pack images into shards: a folder of them, archives or Parquet files into WebDataset tars or Parquet.

    python -m tatok_pipe.pack_images [CONFIG.yaml] input.shards=photos/ output.url=s3://bucket/shards

Every image stays as it is, byte for byte, with its label, caption and JSON. Shards that the output has already are not
made again, so the same command after a crash or Ctrl-C completes it, and after images came to a folder adds theirs.
"""

from tatok_pipe.commands.pack_images.options import PackImagesConfig
from tatok_pipe.runs.entry import Entry

main = Entry("pack_images", PackImagesConfig, description=__doc__)

if __name__ == "__main__":
    main.leave_with()
