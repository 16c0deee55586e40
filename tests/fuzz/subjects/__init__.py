"""The kinds of device that are fuzzed."""

from tests.fuzz.subjects.balloon import Balloon
from tests.fuzz.subjects.block import Block, BlockFile
from tests.fuzz.subjects.console import Console
from tests.fuzz.subjects.engine import Engine
from tests.fuzz.subjects.net import Net
from tests.fuzz.subjects.pci import Pci
from tests.fuzz.subjects.rng import Rng
from tests.fuzz.subjects.share import Share
from tests.fuzz.subjects.vsock import Vsock

SUBJECTS = {
    subject.name: subject for subject in (Engine, Block, BlockFile, Net, Console, Rng, Balloon, Vsock, Share, Pci)
}
