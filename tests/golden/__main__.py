"""See `numbers`."""

import sys

from tests.golden.numbers import PARTS, differences, write

if sys.argv[1:] not in ([], ["--write"]):
    sys.exit("usage: python -m tests.golden [--write]")
is_changed = False
for name, make in PARTS.items():
    if sys.argv[1:]:
        write(name, make())
        continue
    for line in differences(name, make()):
        print(line)
        is_changed = True
sys.exit(is_changed)
