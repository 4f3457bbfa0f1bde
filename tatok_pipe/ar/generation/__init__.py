"""Images from a generator by the thousand: what is asked for, shards of images, what is made of them at the end."""
