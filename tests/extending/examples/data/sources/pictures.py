"""`backend: pictures`: a folder of files NAME.json and NAME.png (and NAME.depth.png, ...), without shards."""

import zlib
from functools import partial
from pathlib import Path

from megaunigame.data.sources.base import Backend, SampleRef
from megaunigame.data.sources.order import Order
from megaunigame.errors import ConfigError


class Pictures(Backend):
    exact = True

    def __init__(self, folder, seed):
        self.location, self.seed = str(folder), seed
        self.samples = sorted(folder.glob("*.json"))
        self.epoch = len(self.samples)
        self.order = Order([self.epoch], seed)
        self.identity = {"files (hash)": zlib.crc32(" ".join(file.stem for file in self.samples).encode())}

    @classmethod
    def open(cls, key, config, seed):
        if config.where:
            raise ConfigError(f"{key}.where: backend=pictures has no filters. Leave it out.")
        if not any(Path(config.shards).glob("*.json")):
            raise ConfigError(f"{key}.shards={config.shards} is not a folder with files NAME.json.")
        return cls(Path(config.shards), seed)

    def find(self, position, attempt):
        _, _, number = self.order.locate(position + attempt)
        sample = self.samples[number]
        return SampleRef(sample.stem, self.location, partial(read, sample), lambda: None)


def read(sample):
    """Field of a sample -> its bytes."""
    files = sample.parent.glob(f"{sample.stem}.*")
    return {file.name.removeprefix(f"{sample.stem}."): file.read_bytes() for file in files}
